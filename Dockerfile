# One image for the API, the workers and the migrations; the command says which.
# It runs on CPU, and on NVIDIA GPUs where the container runtime offers them.

FROM python:3.11-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/adap
ENV PATH=/opt/adap/bin:$PATH
WORKDIR /src
# Dependencies first, without our code: this layer is several GB and changes with `make lock` only.
# Each file is checked against its hash, setuptools too, which builds ours below.
COPY requirements.lock ./
RUN pip install --require-hashes --requirement requirements.lock
COPY LICENSE README.md pyproject.toml ./
COPY adap adap
COPY api api
COPY client client
COPY core core
COPY models models
COPY store store
COPY worker worker
RUN pip install --no-deps --no-build-isolation .

FROM python:3.11-slim-bookworm
RUN useradd --uid 10001 --create-home --home-dir /var/lib/adap --shell /usr/sbin/nologin adap
COPY --from=build /opt/adap /opt/adap
# Safe path: the scratch folder is writable, so no module may be imported from it.
# The API refuses 0.0.0.0 until an API key exists.
ENV PATH=/opt/adap/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1 \
    TMPDIR=/var/lib/adap \
    ADAP_HOME=/var/lib/adap \
    ADAP_HOST=0.0.0.0
USER 10001:10001
WORKDIR /opt/adap
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/livez', timeout=4)"]
CMD ["python", "-m", "adap.api"]
