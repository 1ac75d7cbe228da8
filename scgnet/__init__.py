"""SCGNet: shifting and cascaded group convolution networks. Imports torch only."""

from scgnet.scgnet import SCGNet, operations, scgnet_l, scgnet_m, scgnet_s

__all__ = ["SCGNet", "operations", "scgnet_l", "scgnet_m", "scgnet_s"]
