"""What ``fairseq-train --user-dir user_dir`` loads: the plugin, from this checkout.

Afterwards ``--optimizer delta_sam`` and its flags (``--sam-method``, ``--sam-rho``
and the others of docs/flags.md) are there, in ``fairseq-train`` and in
``fairseq-hydra-train``. Nothing has to be installed: fairseq puts the folder that
holds ``user_dir`` on the path, and ``deltasam_fairseq`` lies beside it.

With a user directory of your own, add this one import to its ``__init__.py``.
"""

import deltasam_fairseq.fairseq_plugin.register  # noqa: F401
