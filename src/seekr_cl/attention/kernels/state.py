"""Where calls go, for tests and measurements; see ``routing.route``."""

from typing import Literal

Way = Literal["device", "kernels", "tiles"]
way: Way = "device"
