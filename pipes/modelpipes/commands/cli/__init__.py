"""What commands share: options, the types of their values, completion, manual pages."""
