# What our programs need, and what builds them. Nothing runs this image: others take from it.
#
#   context/requirements   the locks
#   context/wheels         what they name
#   context/uv             what installs it
ARG SERVER_BASE
FROM ${SERVER_BASE}
LABEL cellfabric=needed
ENV UV_NO_CACHE=1 UV_OFFLINE=1 UV_NO_INDEX=1 UV_FIND_LINKS=/build/wheels UV_PYTHON_DOWNLOADS=never UV_LINK_MODE=copy
COPY . /build
# The host's Python has Debian's binding to libvirt, which belongs to the machine and not to the environment.
RUN mv /build/uv /usr/bin/uv \
    && uv venv --quiet --system-site-packages --python /usr/bin/python3 /opt/cellfabric \
    && uv pip install --quiet --python /opt/cellfabric --compile-bytecode --require-hashes -r /build/requirements/runtime.txt \
    && uv venv --quiet --python /usr/bin/python3 /build/venv \
    && uv pip install --quiet --python /build/venv --require-hashes -r /build/requirements/build.txt
