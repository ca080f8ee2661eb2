// A worker with nothing but a Kafka client: `node worker.mjs 127.0.0.1:9092 flowpilot.steps.shipping`.
import { Consumer, Producer, ProduceAcks, stringDeserializers, stringSerializers } from '@platformatic/kafka'
import { setTimeout as sleep } from 'node:timers/promises'

const handlers = {
  async label ({ input, parents, attempt }) {
    if (attempt === 1) await sleep((input.seconds ?? 0) * 1000)
    if (attempt <= (input.busy ?? 0)) throw new Error('the label printer is busy')
    return { text: `${input.quantity} × ${input.sku}, ${parents.quote.cents} cents` }
  }
}

const [servers, steps] = process.argv.slice(2)
const client = { clientId: 'node', bootstrapBrokers: servers.split(',') }
const producer = new Producer({ ...client, serializers: stringSerializers, acks: ProduceAcks.ALL })
const groupId = steps.replace('.steps.', '.worker.')
const consumer = new Consumer({ ...client, groupId, deserializers: stringDeserializers })

async function answer (record, step, type, fields) {
  const value = JSON.stringify({ v: 1, type, task_id: step.task_id, worker_id: 'node', ...fields })
  await producer.send({ messages: [{ ...step.reply, value }] })
  await record.commit() // only now: the answer, or the step.started, is acknowledged
}

const records = await consumer.consume({
  topics: [steps], mode: 'committed', fallbackMode: 'earliest', autocommit: false,
  sessionTimeout: 6000, heartbeatInterval: 2000
})
for await (const record of records) {
  const step = JSON.parse(record.value)
  console.log('runs', step.task_id)
  const running = (async () => handlers[step.step](step))().then(
    output => ['step.completed', { output }],
    ({ name, message }) => ['step.failed', { error: { kind: name, message, retryable: true } }]
  )
  let ended
  for (let beat = 1000, say = 'step.started'; !ended; beat = step.heartbeat_ms / 3, say = 'step.heartbeat') {
    ended = await Promise.race([running, sleep(beat)]) // undefined: it runs long, and the engine is to watch it
    await answer(record, step, ...(ended ?? [say]))
  }
}
