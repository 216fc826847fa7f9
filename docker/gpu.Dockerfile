# docker build -f docker/gpu.Dockerfile -t clipbias:gpu . && docker run --rm --gpus all clipbias:gpu
# The CUDA libraries come with JAX's own packages; the host needs NVIDIA's driver and container toolkit alone.
FROM python:3.11-slim
WORKDIR /clipbias
COPY . .
RUN pip install --no-cache-dir -e . "jax[cuda12]"
CMD ["clipbias", "table1", "--config=configs/demo.py"]
