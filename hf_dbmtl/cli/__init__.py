"""
The commands of `hf-dbmtl`, a module each, imported when its command runs. Their names and help are in `hf_dbmtl_cli`,
which needs no torch.
"""

from hf_dbmtl_cli import main


__all__ = ["main"]
