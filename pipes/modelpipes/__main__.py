"""`python -m modelpipes VERB …`"""

from modelpipes.commands import main

main()
