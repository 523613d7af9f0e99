"""GPUs as XLA's compiler wants them described, and what their vendor says they can do. Only facts; a new GPU is a row."""

from __future__ import annotations

import dataclasses

from regcache_jax.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class Gpu:
    """A GPU. Peaks without sparsity: operations a second of products in bfloat16 and int8, bytes a second of memory."""

    name: str
    source: str
    capability: tuple[int, int]
    bf16: float
    int8: float
    bandwidth: float
    memory: int
    cores: int
    lanes: int
    clock_ghz: float
    shared_kib: int
    threads: int
    cache_mib: int

    def peak(self, dtype: str) -> float:
        """Operations a second of products whose inputs are `dtype`, as HLO spells it; float32 counts as bfloat16, which flatters it."""
        return self.int8 if dtype in ("s8", "u8") else self.bf16

    @property
    def description(self) -> str:
        """A `GpuTargetConfig` of XLA, as text."""
        major, minor = self.capability
        feature = "ACCELERATED_FEATURES" if major >= 9 else "NONE"
        return f"""
            platform_name: "CUDA" device_description_str: "{self.name}"
            runtime_version {{ major: 12 minor: 9 patch: 0 }} dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
            gpu_device_info {{
              name: "{self.name}" device_vendor: "NVIDIA Corporation"
              driver_version: "13.0.0" runtime_version: "12.9.0" compile_time_toolkit_version: "12.9.0" dnn_version: "9.10.0"
              cuda_compute_capability {{ major: {major} minor: {minor} feature_extension: {feature} }}
              core_count: {self.cores} fpus_per_core: {self.lanes} clock_rate_ghz: {self.clock_ghz}
              memory_bandwidth: {int(self.bandwidth)} device_memory_size: {self.memory} l2_cache_size: {self.cache_mib << 20}
              shared_memory_per_core: {self.shared_kib << 10} shared_memory_per_block: {48 << 10}
              shared_memory_per_block_optin: {(self.shared_kib - 1) << 10}
              threads_per_core_limit: {self.threads} threads_per_block_limit: 1024 threads_per_warp: 32
              registers_per_core_limit: 65536 registers_per_block_limit: 65536
              block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
              thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
            }}"""


GPUS = {
    "h100": Gpu(
        "NVIDIA H100 SXM", "NVIDIA H100 Tensor Core GPU data sheet; Hopper tuning guide",
        (9, 0), 989.4e12, 1978.9e12, 3.35e12, 80 * 10**9, 132, 128, 1.98, 228, 2048, 50,
    ),
    "a100": Gpu(
        "NVIDIA A100 SXM 80GB", "NVIDIA A100 Tensor Core GPU data sheet; Ampere tuning guide",
        (8, 0), 312e12, 624e12, 2.039e12, 80 * 10**9, 108, 64, 1.41, 164, 2048, 40,
    ),
    "l4": Gpu(
        "NVIDIA L4", "NVIDIA L4 Tensor Core GPU data sheet; Ada architecture white paper",
        (8, 9), 121e12, 242e12, 0.3e12, 24 * 10**9, 58, 128, 2.04, 100, 1536, 48,
    ),
}  # fmt: skip
"""Targets of `regcache gpu`."""


def gpu(target: str) -> Gpu:
    """One of `GPUS`. Raises UserError for another name."""
    if target not in GPUS:
        raise UserError(f"target must be one of {', '.join(GPUS)}, got {target!r}")
    return GPUS[target]
