"""The compiler's passes, one a file.

The graph IR is Relax (Relay left TVM in 0.20); the folder keeps the name the project began with.
Every pass is an ordinary ``tvm.transform.Pass`` from IRModule to IRModule and can stand in any
Relax pipeline.
"""

from tbn_tvm.relay_passes.bind_batch import BindBatch
from tbn_tvm.relay_passes.build_fused_kernels import BuildFusedKernels
from tbn_tvm.relay_passes.find_tiled_weights import FindTiledWeights
from tbn_tvm.relay_passes.fold_batch_norm import FoldBatchNorm
from tbn_tvm.relay_passes.fuse_bias import FuseBias
from tbn_tvm.relay_passes.fuse_same_shapes import FuseSameShapes
from tbn_tvm.relay_passes.lift_workspaces import LiftWorkspaces
from tbn_tvm.relay_passes.lower_tiled_products import LowerTiledProducts
from tbn_tvm.relay_passes.normalise_indices import NormaliseIndices
from tbn_tvm.relay_passes.retile_weights import RetileWeights
from tbn_tvm.relay_passes.rewrite_tiled_layers import RewriteTiledLayers
from tbn_tvm.relay_passes.schedule_defaults import ScheduleDefaults
from tbn_tvm.relay_passes.schedule_gpu_defaults import ScheduleGpuDefaults
from tbn_tvm.relay_passes.sort_by_rank import SortByRank
from tbn_tvm.relay_passes.windows_to_products import WindowsToProducts

__all__ = [
    "BindBatch",
    "BuildFusedKernels",
    "FindTiledWeights",
    "FoldBatchNorm",
    "FuseBias",
    "FuseSameShapes",
    "LiftWorkspaces",
    "LowerTiledProducts",
    "NormaliseIndices",
    "RetileWeights",
    "RewriteTiledLayers",
    "ScheduleDefaults",
    "ScheduleGpuDefaults",
    "SortByRank",
    "WindowsToProducts",
]
