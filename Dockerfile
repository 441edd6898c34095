# The image that the manifests run: aiaas from this checkout, on Python 3.11, as a user without rights.
#
#   docker build -t registry.example.com/aiaas:0.1.0 .
#   docker run --rm --read-only -p 8080:8080 -v ./config:/etc/aiaas/config:ro registry.example.com/aiaas:0.1.0
#
# Everything from the package index is locked by hash (docker/*.txt; `nox -s lock` writes them anew), wheels only, so
# that nothing is compiled and nothing runs at installation.

FROM python:3.11-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY docker/build.txt docker/requirements.txt docker/
RUN python -m venv /opt/build \
    && /opt/build/bin/pip install --require-hashes --only-binary :all: -r docker/build.txt \
    && python -m venv --without-pip /opt/aiaas \
    && python -m pip --python /opt/aiaas/bin/python install \
        --require-hashes --only-binary :all: -r docker/requirements.txt
COPY pyproject.toml README.md LICENSE ./
COPY aiaas aiaas
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir dist . \
    && python -m pip --python /opt/aiaas/bin/python install --no-deps --no-index dist/*.whl \
    && /opt/aiaas/bin/python -m compileall -q /opt/aiaas/lib

FROM python:3.11-slim-bookworm
LABEL org.opencontainers.image.title="aiaas" \
      org.opencontainers.image.description="The gateway that a platform team puts in front of its own vLLM" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/aiaas /opt/aiaas
# The root file system may be read-only: bytecode is compiled above, and nothing else is written.
ENV PATH=/opt/aiaas/bin:$PATH PYTHONDONTWRITEBYTECODE=1
# A number, so that Kubernetes can see that it is not root (`runAsNonRoot`).
USER 10001:10001
WORKDIR /etc/aiaas
EXPOSE 8080 9090
# For `docker run`; Kubernetes has its own probes. A gateway that drains is alive.
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8080/health', timeout=2)"]
ENTRYPOINT ["aiaas"]
CMD ["serve", "--config", "/etc/aiaas/config/config.yaml"]
