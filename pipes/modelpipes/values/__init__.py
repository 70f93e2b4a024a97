"""What all need and nobody's subject is: moments, quantities, paths, percentiles, the version."""
