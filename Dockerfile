# One image for CPUs and GPUs, for docker, the dev container and KubeRay's manifests. Build it at the project's root:
#   docker build -t troupe:cpu .                             # CPUs, about 4 GB
#   docker build --build-arg STACK=gpu -t troupe:gpu .       # NVIDIA GPUs, about 20 GB; CUDA comes with torch's wheels
#   docker run --rm -it --shm-size=8g -v "$PWD/runs:/opt/troupe/runs" troupe:cpu
# For a GPU add --gpus all, which needs NVIDIA's container toolkit. docs/containers.md says what has been run.

# -- what the stack needs of the system: a compiler for DeepSpeed's extension, wget for KubeRay's probes
FROM python:3.11-bookworm AS system
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# The distribution's own releases: what Python runs is pinned in requirements/.
# hadolint ignore=DL3008
RUN apt-get update -q \
    && apt-get install -yq --no-install-recommends build-essential git make openssh-client rsync wget \
    && rm -rf /var/lib/apt/lists/*

# -- the project with its environment
FROM system AS project
ARG STACK=cpu
WORKDIR /opt/troupe
# What the installer reads, so that a change of the sources does not install the packages anew.
COPY Makefile pyproject.toml install.py ./
COPY requirements requirements
COPY troupe/__init__.py troupe/lazy.py troupe/extension.py troupe/
RUN make install STACK=${STACK} && rm -rf /root/.cache
COPY troupe troupe
COPY rewards rewards
COPY actors actors
COPY serving serving
COPY jobs jobs
COPY configs configs
# Every process that Ray starts finds the environment and the project.
ENV PATH=/opt/troupe/.venv/bin:$PATH PYTHONPATH=/opt/troupe
CMD ["troupe", "--help"]
