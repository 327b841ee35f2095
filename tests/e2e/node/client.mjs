// The public API from JavaScript, made from protos/ at run time: what a program needs that shares no code with us.
//
//   FABRIC_ENDPOINT=host:port FABRIC_CA_FILE=ca.pem FABRIC_TOKEN=... node client.mjs FLAVOR IMAGE NAME
//
// Lists the flavors, creates a server twice under one request_id, asks for one that is not there, and prints what came of it as JSON.
import { randomUUID } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import grpc from '@grpc/grpc-js';
import protoLoader from '@grpc/proto-loader';
import protobuf from 'protobufjs';

const DEADLINE_MS = 30_000;

// int64 as strings: a revision may be larger than JavaScript's numbers are exact.
const { fabric } = grpc.loadPackageDefinition(
  protoLoader.loadSync(
    ['fabric/compute/v1/flavor_service.proto', 'fabric/compute/v1/instance_service.proto'],
    {
      includeDirs: [fileURLToPath(new URL('../../../protos', import.meta.url))],
      keepCase: true,
      longs: String,
      enums: String,
      defaults: true,
    },
  ),
);

// What every error carries in its trailer, of google.rpc only as much as is read here.
const rpc = protobuf.parse(
  `
  syntax = "proto3";
  message Any { string type_url = 1; bytes value = 2; }
  message Status { int32 code = 1; string message = 2; repeated Any details = 3; }
  message ErrorInfo { string reason = 1; string domain = 2; map<string, string> metadata = 3; }
`,
  { keepCase: true },
).root;

function required(name) {
  const value = process.env[name];
  if (!value) throw new Error(`set ${name}`);
  return value;
}

const credentials = grpc.credentials.createSsl(readFileSync(required('FABRIC_CA_FILE')));
const metadata = new grpc.Metadata();
metadata.set('authorization', `Bearer ${required('FABRIC_TOKEN')}`);

function connect(Service) {
  const client = new Service(required('FABRIC_ENDPOINT'), credentials);
  const call = (method, request) =>
    promisify(client[method].bind(client))(request, metadata, { deadline: Date.now() + DEADLINE_MS });
  return { call, close: () => client.close() };
}

function reasonOf(error) {
  const [trailer] = error.metadata.get('grpc-status-details-bin');
  const { details } = rpc.lookupType('Status').decode(trailer);
  const info = details.find((it) => it.type_url.endsWith('/google.rpc.ErrorInfo'));
  return rpc.lookupType('ErrorInfo').decode(info.value).reason;
}

const [flavor, image, name] = process.argv.slice(2);
if (!name) throw new Error('usage: node client.mjs FLAVOR IMAGE NAME');

const flavors = connect(fabric.compute.v1.FlavorService);
const instances = connect(fabric.compute.v1.InstanceService);
try {
  const listed = await flavors.call('ListFlavors', {});
  const asked = { request_id: randomUUID(), name, flavor, image };
  const first = await instances.call('CreateInstance', asked);
  const second = await instances.call('CreateInstance', asked);
  const absent = await instances.call('GetInstance', { instance: randomUUID() }).then(
    () => null,
    (error) => ({ code: grpc.status[error.code], reason: reasonOf(error) }),
  );
  console.log(
    JSON.stringify({
      flavors: listed.flavors.map((it) => ({ name: it.name, ram_mib: it.ram_mib })),
      instance: { id: first.instance.id, state: first.instance.status.state },
      same: second.instance.id === first.instance.id,
      absent,
    }),
  );
} finally {
  flavors.close();
  instances.close();
}
