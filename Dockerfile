# One image for every machine of a cluster: docker build -t regrad:0.1.0 .
# PyTorch's wheel brings CUDA, so it runs with and without a GPU (with one: NVIDIA's driver and container toolkit on the host).
# For processors alone and much smaller: --build-arg TORCH_INDEX=URL of an index of PyTorch's builds without CUDA.
# For a GPU with DeepSpeed's own kernels, which need a compiler of CUDA: --build-arg BASE=an image of CUDA with Python.
ARG BASE=python:3.12-slim
FROM ${BASE}

# KubeRay and `ray up` ask for these; libgomp is PyTorch's. Their versions are the base's, so that they get its fixes.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates libgomp1 procps wget \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home --uid 1000 regrad && install -d -o regrad /app /mnt/local

WORKDIR /app
COPY pyproject.toml README.md LICENSE constraints.txt /app/
COPY regrad /app/regrad
COPY ray_jobs /app/ray_jobs
COPY serve_app /app/serve_app
COPY --chown=regrad configs /app/configs

ARG TORCH_INDEX=""
RUN pip install --no-cache-dir -c constraints.txt ${TORCH_INDEX:+--extra-index-url ${TORCH_INDEX}} ".[dense,documents]"

USER 1000
ENV RAY_USAGE_STATS_ENABLED=0 PYTHONUNBUFFERED=1
CMD ["regrad", "--help"]
