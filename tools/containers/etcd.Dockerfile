# A member of a store. The context is a folder with etcd and etcdctl.
ARG SERVER_BASE
FROM ${SERVER_BASE}
LABEL cellfabric=etcd
RUN groupadd --gid 10001 cellfabric && useradd --uid 10001 --gid 10001 --no-create-home cellfabric \
    && install -d -o cellfabric -g cellfabric -m 0700 /var/lib/etcd
COPY . /usr/bin
USER cellfabric
VOLUME /var/lib/etcd
CMD ["etcd"]
