# The runtime image of agents and of the hub: Python, Dry Work and the tested versions of what it needs.
#
#   docker build -t dry-work --build-arg PYTHON_DIGEST=@sha256:… .
#
# An agent's image is a thin layer on it: its files in /app, which is where `dry-work run` looks for dry-work.toml,
# symbols.txt and the strategy. Extra requirements are installed as root into /opt/venv; USER is trader again after that.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm
# `@sha256:…` of the image above; a release is built with one.
ARG PYTHON_DIGEST=

FROM ${PYTHON_IMAGE}${PYTHON_DIGEST} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_COMPILE=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /src
RUN python3 -m venv /opt/venv && /opt/venv/bin/pip uninstall --yes --quiet setuptools
# What is needed first, since it changes seldom; its layer is used again when only the sources changed.
COPY pyproject.toml constraints.txt ./
RUN /opt/venv/bin/python -c "import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
    extras = project['optional-dependencies']; names = ('hub', 'storage', 'nats', 'redis', 'grpc'); \
    print(*project['dependencies'], *(line for name in names for line in extras[name]), sep='\n')" > requirements.txt \
    && /opt/venv/bin/pip install -r requirements.txt -c constraints.txt \
    && /opt/venv/bin/pip check
COPY README.md LICENSE ./
COPY dry_work dry_work
COPY agents agents
RUN /opt/venv/bin/pip install --no-deps .
# What is never used here: tests of packages, Arrow's Flight and S3. The rest is compiled now, since the root
# of a container is read-only; not by time stamps, which differ from build to build.
RUN find /opt/venv/lib/python3.*/site-packages -type d -name tests -not -path '*/dry_work/*' -prune -exec rm -rf {} + \
    && cd /opt/venv/lib/python3.*/site-packages/pyarrow \
    && rm -rf include libarrow_flight.so.* libarrow_s3.so.* libarrow_python_flight.so* _flight.* _s3fs.* \
    && cd / \
    && /opt/venv/bin/python -c "import dry_work.cli.run, pandas, pyarrow.compute, pyarrow.csv, pyarrow.parquet" \
    && /opt/venv/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/venv/lib

FROM ${PYTHON_IMAGE}${PYTHON_DIGEST}
LABEL org.opencontainers.image.title="dry-work" org.opencontainers.image.licenses="GPL-3.0-or-later"
RUN groupadd --gid 10001 trader \
    && useradd --uid 10001 --gid trader --no-create-home --home-dir /tmp --shell /usr/sbin/nologin trader \
    && install -d -o trader -g trader -m 0750 /var/lib/trading-agent \
    && install -d /app
COPY --from=build /opt/venv /opt/venv
COPY symbols.txt /app/symbols.txt
ENV PATH=/opt/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME=/tmp
WORKDIR /app
# Manifests name it by number, so that Kubernetes can tell that it is not root.
USER trader
VOLUME /var/lib/trading-agent
# The same check as the liveness probe: the heartbeat file is at most 600 s old.
HEALTHCHECK --interval=60s --timeout=10s --start-period=60s --retries=3 \
    CMD ["dry-work", "health", "--state-dir", "/var/lib/trading-agent"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["dry-work"]
CMD ["run"]
