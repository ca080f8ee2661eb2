# FlowPilot's roles in one image, as a user without rights.
#
#   docker build -t flowpilot .
#   docker run --rm flowpilot --help
#
# Your own workflows: FROM flowpilot, `RUN pip --python /opt/flowpilot/bin/python install …` as root for what they
# import, COPY them to /workflows and go back to USER 10001; or mount them there, as docker-compose.yml does.

FROM python:3.13-slim AS build
WORKDIR /build
# uv comes from its own entry of the lock, then all that the roles need; the lock's hashes hold for both.
COPY requirements.lock pyproject.toml README.md ./
RUN sed -n '/^uv==/,/^[^ ]/{/^uv==/p;/^ /p;}' requirements.lock > uv.lock.txt \
    && pip install --no-cache-dir --disable-pip-version-check --require-hashes -r uv.lock.txt \
    && uv venv /opt/flowpilot \
    && uv pip install --python /opt/flowpilot --no-cache --compile-bytecode --require-hashes \
        --constraints requirements.lock --requirements pyproject.toml --extra engine --extra server --extra metrics
# What changes more often comes last.
COPY flowpilot flowpilot
COPY agents agents
COPY schemas schemas
RUN uv build --no-cache --wheel --require-hashes --build-constraints requirements.lock --out-dir dist \
    && uv pip install --python /opt/flowpilot --no-cache --compile-bytecode --no-deps dist/*.whl

FROM python:3.13-slim
RUN useradd --system --uid 10001 --no-create-home --home-dir /workflows --shell /usr/sbin/nologin flowpilot
COPY --from=build /opt/flowpilot /opt/flowpilot
ENV PATH=/opt/flowpilot/bin:$PATH \
    PYTHONUNBUFFERED=1
WORKDIR /workflows
USER 10001
# No HEALTHCHECK: a role in doubt ends, and its restart is what makes it well again.
ENTRYPOINT ["flowpilot"]
CMD ["--help"]
