"""What ``fairseq-train --user-dir "$(deltasam user-dir)"`` loads.

Afterwards ``--optimizer delta_sam`` and its ``--sam-…`` flags exist.
"""

import deltasam_fairseq.fairseq_plugin.register  # noqa: F401
