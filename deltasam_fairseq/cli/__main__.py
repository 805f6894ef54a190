"""``python -m deltasam_fairseq.cli VERB …``, where ``deltasam`` is not on ``PATH``."""

import sys

from deltasam_fairseq.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
