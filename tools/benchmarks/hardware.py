"""Accelerators as their makers describe them: for plans, not measured here."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Hardware:
    """Some of one kind of accelerator.

    Attributes:
      name: as in the plan's table.
      devices: how many, and `per_host` how many of them one host feeds.
      peak: FLOP per second of one device, bfloat16 products of dense matrices.
      link: bytes per second that one device sends to its neighbours, in one direction.
      source: where `peak` and `link` are published.
    """

    name: str
    devices: int
    per_host: int
    peak: float
    link: float
    source: str


H100 = Hardware(
    name="8 x H100 SXM",
    devices=8,
    per_host=8,
    peak=989e12,
    link=450e9,
    source="NVIDIA H100 Tensor Core GPU data sheet, SXM: BFLOAT16 1,979 TFLOPS with sparsity (half without), NVLink "
    "900 GB/s both directions together; https://www.nvidia.com/en-us/data-center/h100/",
)
V5E = Hardware(
    name="TPU v5e-64",
    devices=64,
    per_host=8,
    peak=197e12,
    link=200e9,
    source="Google Cloud, TPU v5e: 197 TFLOPs bf16, inter-chip interconnect 1600 Gbps per chip, an 8 x 8 slice on 8 "
    "hosts; https://cloud.google.com/tpu/docs/v5e",
)
