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
# The locks name everything, so nothing is resolved. pip checks PyTorch's hashes, too, where its lock has them.
COPY deploy/image/*.lock ./
RUN --mount=type=secret,id=pip_config --mount=type=secret,id=pip_ca \
    pip --python /opt/venv install --no-deps --only-binary :all: ${TORCH_INDEX_URL:+--index-url "${TORCH_INDEX_URL}"} \
        -r "torch-$([[ -n "${TORCH_INDEX_URL}" ]] && echo cpu || echo cuda).lock" \
    && pip --python /opt/venv install --no-deps --only-binary :all: --require-hashes -r requirements.lock
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY app app
COPY model model
RUN pip --python /opt/venv install --no-deps --no-build-isolation . \
    && pip --python /opt/venv check
# PyTorch's own tests and C++ headers serve nobody here.
RUN torch="$(echo /opt/venv/lib/python3*/site-packages/torch)" \
    && rm -rf "${torch}/test" "${torch}/include" \
    && find "${torch}/bin" -type f ! -name torch_shm_manager -delete

FROM ${PYTHON_IMAGE}
ARG PYTHON_IMAGE
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="music-tagger" \
      org.opencontainers.image.description="Scores clips of music: vocal, dance, soundtrack, pop" \
      org.opencontainers.image.licenses="Apache-2.0 AND ISC AND GPL-2.0-or-later AND LGPL-3.0-or-later" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="${PYTHON_IMAGE}"
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
