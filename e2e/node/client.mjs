// An MQTT.js client driven by lines of JSON: commands on standard input, one
// object each, and events on standard output. Every command has an id, which its
// answer repeats. It ends when its standard input does.
//
//   {"id":1,"do":"connect","url":"ws://…/mqtt","options":{…}}
//   {"id":2,"do":"subscribe","topic":"group/+","options":{"qos":1}}
//   {"id":3,"do":"publish","topic":"user/bob","payload":"<base64>","options":{"qos":1}}
//   {"id":4,"do":"end"}
import { createInterface } from 'node:readline';
import mqtt from 'mqtt';

const emit = (event) => process.stdout.write(JSON.stringify(event) + '\n');
// Packets hold buffers and cycles; what tests look at is this.
const outline = (packet) =>
  packet && {
    reasonCode: packet.reasonCode ?? packet.returnCode,
    granted: packet.granted,
    sessionPresent: packet.sessionPresent,
    properties: packet.properties && {
      reasonString: packet.properties.reasonString,
      userProperties: packet.properties.userProperties && { ...packet.properties.userProperties },
      assignedClientIdentifier: packet.properties.assignedClientIdentifier,
      receiveMaximum: packet.properties.receiveMaximum,
      sessionExpiryInterval: packet.properties.sessionExpiryInterval,
    },
  };

let client;

const commands = {
  connect({ id, url, options }) {
    client = mqtt.connect(url, { reconnectPeriod: 0, connectTimeout: 10_000, ...options });
    let answered = false;
    client.on('connect', (packet) => {
      emit({ id: answered ? 0 : id, event: 'connect', packet: outline(packet) });
      answered = true;
    });
    client.on('message', (topic, payload, packet) =>
      emit({
        event: 'message', topic, payload: payload.toString('base64'),
        qos: packet.qos, retain: packet.retain, dup: packet.dup,
      }));
    client.on('packetreceive', (packet) => {
      if (packet.cmd === 'puback' || packet.cmd === 'pubrec' || packet.cmd === 'suback') {
        emit({ event: packet.cmd, packet: outline(packet) });
      }
    });
    client.on('disconnect', (packet) => emit({ event: 'disconnect', packet: outline(packet) }));
    client.on('close', () => {
      emit({ id: answered ? 0 : id, event: 'close', error: 'closed before CONNACK' });
      answered = true;
    });
    client.on('error', (error) => {
      emit({ id: answered ? 0 : id, event: 'error', error: error.message, packet: { reasonCode: error.code } });
      answered = true;
    });
  },
  subscribe({ id, topic, options }) {
    client.subscribe(topic, options, (error, granted, packet) =>
      emit({ id, event: 'subscribed', error: error?.message, packet: outline(packet) }));
  },
  publish({ id, topic, payload, options }) {
    client.publish(topic, Buffer.from(payload, 'base64'), options, (error, packet) =>
      emit({ id, event: 'published', error: error?.message, packet: outline(packet) }));
  },
  end({ id, force }) {
    client.end(Boolean(force), {}, () => emit({ id, event: 'ended' }));
  },
};

emit({ event: 'ready' });
const lines = createInterface({ input: process.stdin });
for await (const line of lines) {
  const command = JSON.parse(line);
  commands[command.do](command);
}
process.exit(0);
