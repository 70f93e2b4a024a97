import sys

from tests.drill.drill import main

sys.exit(main())
