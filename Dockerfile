# syntax=docker/dockerfile:1
# docker build -t easel .                                   with CUDA
# docker build -t easel --build-arg VARIANT=cpu \
#     --build-arg TORCH_INDEX=<PyTorch's index of CPU builds> .

ARG PYTHON_VERSION=3.11

FROM python:${PYTHON_VERSION}-slim-bookworm AS build
ARG VARIANT=cuda
ARG TORCH_INDEX=
ARG EXTRAS=traces,int8
WORKDIR /src
COPY pyproject.toml hatch_build.py constraints.txt README.md LICENSE ./
COPY docker/install.sh docker/install.sh
COPY config config
COPY app app
RUN docker/install.sh /opt/easel

FROM python:${PYTHON_VERSION}-slim-bookworm
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /data --shell /usr/sbin/nologin easel \
    && install -d -o easel -g easel /data /models
COPY --from=build /opt/easel /opt/easel
ENV PATH=/opt/easel/bin:$PATH \
    EASEL_HOST=0.0.0.0 \
    EASEL_PORT=5199 \
    EASEL_DATA_DIR=/data \
    HF_HOME=/models \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
WORKDIR /data
# Jobs and pictures; and models from the Hub. Settings come as EASEL_… variables, or as a folder with
# easel.toml and models/ that is mounted and named by EASEL_CONFIG_DIR.
VOLUME ["/data", "/models"]
EXPOSE 5199
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f'http://127.0.0.1:{os.environ[\"EASEL_PORT\"]}/health', timeout=4)"]
CMD ["easel", "serve"]
