# One image for the service, its workers and its migrations; docs/deployment.md says how they fit together.
#
#   docker build -t taesar .                                CPU
#   docker build -t taesar:cuda --build-arg TORCH=cuda .    NVIDIA GPU
#
# A package index of your own goes in as pip's configuration file, which no layer keeps:
#
#   docker build --secret id=pip.conf,src=pip.conf -t taesar .

# Any Debian whose `python` is this Python serves as well, which is how `make image-test` builds without a registry.
ARG PYTHON_IMAGE=python:3.11.13-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
WORKDIR /build
COPY constraints.txt ./

# cpu: the build without GPU libraries (several GB smaller) where pip's indexes have it, else the one that they have,
# which computes on a CPU as well. cuda: one with GPU libraries, or the build ends here.
ARG TORCH=cpu
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    python -m venv --without-pip /opt/taesar; \
    install() { python -m pip --python /opt/taesar/bin/python --no-cache-dir install -c constraints.txt "$@"; }; \
    pinned="$(grep '^torch==' constraints.txt)"; \
    case "$TORCH" in \
        cpu) install "$pinned+cpu" || { echo "no index has $pinned+cpu; taking $pinned"; install "$pinned"; } ;; \
        cuda) install "$pinned"; \
            /opt/taesar/bin/python -c 'import sys, torch; sys.exit(torch.version.cuda is None)' \
                || { echo "TORCH=cuda: pip's indexes offer only a torch without CUDA"; exit 1; } ;; \
        *) echo "TORCH is cpu or cuda, not $TORCH"; exit 1 ;; \
    esac

# Before the sources, so that changing them does not install everything again.
COPY pyproject.toml ./
# EXTRA_PACKAGES: what fsspec needs for the object store of jobs, e.g. "s3fs"; none, as jobs' files lie in a volume.
ARG EXTRA_PACKAGES=""
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' \
        > requirements.txt; \
    echo "$EXTRA_PACKAGES" | tr ' ' '\n' >> requirements.txt; \
    python -m pip --python /opt/taesar/bin/python --no-cache-dir install -c constraints.txt -r requirements.txt

COPY README.md LICENSE ./
COPY app app
COPY models models
COPY migrations migrations
# What is only for compiling against a package or for testing it is a tenth of the image.
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    python -m pip --python /opt/taesar/bin/python --no-cache-dir install --no-deps .; \
    packages="$(/opt/taesar/bin/python -c 'import sysconfig; print(sysconfig.get_path("platlib"))')"; \
    rm -rf "$packages"/torch/include "$packages"/torch/test "$packages"/pyarrow/include "$packages"/pyarrow/tests; \
    find "$packages"/torch/bin -type f ! -name torch_shm_manager -delete; \
    /opt/taesar/bin/python -W error -c 'import app.main, app.jobs.worker, models.training.pipeline'

FROM ${PYTHON_IMAGE}
# The compiler builds the inner loop of decoding for the processor that it meets (models/kernels); for a GPU Triton
# wants it. A base that has one already is not asked to fetch it.
# hadolint ignore=DL3008
RUN if ! command -v g++; then \
        apt-get update \
        && apt-get install -y --no-install-recommends g++ \
        && rm -rf /var/lib/apt/lists/*; \
    fi
# A fixed number, so that folders of the host can be given to it.
RUN groupadd --gid 10001 taesar \
    && useradd --uid 10001 --gid taesar --no-log-init --no-create-home --home-dir /data --shell /usr/sbin/nologin taesar \
    && install --directory --owner taesar --group taesar /data /bundles /input /scratch
COPY --from=build /opt/taesar /opt/taesar
COPY --chmod=0755 deploy/taesar-start /usr/local/bin/taesar-start
COPY --chmod=0644 examples/food-kitchen-sample.csv.gz /usr/local/share/taesar/sample.csv.gz

# Threads of OpenMP that wait without spinning: API and workers share cores.
ENV PATH=/opt/taesar/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONUNBUFFERED=1 \
    OMP_WAIT_POLICY=PASSIVE \
    TAESAR_HOST=0.0.0.0 \
    TAESAR_DATA=/data \
    TMPDIR=/scratch \
    TAESAR_BUNDLE_ROOT=/bundles \
    SAMPLE=/usr/local/share/taesar/sample.csv.gz

USER 10001:10001
WORKDIR /data
EXPOSE 8000
ENTRYPOINT ["taesar-start"]
CMD ["serve"]
