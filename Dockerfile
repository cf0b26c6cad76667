# make image                                         for the CPU
# make image IMAGE_ARGS='--build-arg TORCH_INDEX_URL=' with CUDA
ARG PYTHON_IMAGE=docker.io/library/python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
# PyTorch's CPU wheels are a fraction of the size of the default ones, which bring CUDA; empty takes the default ones.
ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
# Behind a mirror: --secret id=pip_config,src=pip.conf --secret id=pip_ca,src=ca.pem, where pip.conf may say
# `cert = /run/secrets/pip_ca`. Without these secrets pip finds no such file and goes on.
ENV PIP_CONFIG_FILE=/run/secrets/pip_config \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
WORKDIR /src

# The base image's pip installs into the environment, which itself stays without one.
RUN python -m venv --without-pip /opt/venv
COPY pyproject.toml ./
RUN python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' \
    | tee requirements.txt | grep '^torch' > torch.txt
RUN --mount=type=secret,id=pip_config --mount=type=secret,id=pip_ca \
    pip --python /opt/venv install ${TORCH_INDEX_URL:+--index-url "${TORCH_INDEX_URL}"} -r torch.txt \
    && pip --python /opt/venv install -r requirements.txt
COPY README.md LICENSE NOTICE ./
COPY app app
COPY model model
RUN --mount=type=secret,id=pip_config --mount=type=secret,id=pip_ca \
    pip --python /opt/venv install --no-deps .

FROM ${PYTHON_IMAGE}
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="music-tagger" \
      org.opencontainers.image.description="Scores clips of music: vocal, dance, soundtrack, pop" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
RUN useradd --system --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin tagger
COPY --from=build /opt/venv /opt/venv
# Nothing is written: the root file system may be read-only.
ENV PATH=/opt/venv/bin:${PATH} \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    TAGGER_HOST=0.0.0.0 \
    TAGGER_PORT=8000
USER 10001
WORKDIR /
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.build_opener(r.ProxyHandler({})).open('http://127.0.0.1:' + os.environ['TAGGER_PORT'] + '/health/ready', timeout=4)"]
ENTRYPOINT ["music-tagger"]
CMD ["serve"]
