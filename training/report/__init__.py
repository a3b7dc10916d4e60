"""What runs show of themselves in a report, as plain numbers: the page they stand on is made elsewhere."""

from .feature_map import NUM_NEIGHBOURS, flatten, share_alike
from .heat_maps import HeatMaps, heat_maps
from .run_log import Curve, RunLog, Validation, read_log, thin
from .run_record import Epoch, RunRecord, read_record, telling_settings

__all__ = [
    "NUM_NEIGHBOURS",
    "Curve",
    "Epoch",
    "HeatMaps",
    "RunLog",
    "RunRecord",
    "Validation",
    "flatten",
    "heat_maps",
    "read_log",
    "read_record",
    "share_alike",
    "telling_settings",
    "thin",
]
