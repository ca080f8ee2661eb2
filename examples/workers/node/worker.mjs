// A worker with nothing but a Kafka client: `node worker.mjs 127.0.0.1:9092 flowpilot.steps.shipping`.
import { Consumer, Producer, ProduceAcks, stringDeserializers, stringSerializers } from '@platformatic/kafka'
import { createHmac, timingSafeEqual } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'

const handlers = {
  async label ({ input, parents, attempt }) {
    if (attempt === 1) await sleep((input.seconds ?? 0) * 1000)
    if (attempt <= (input.busy ?? 0)) throw new Error('the label printer is busy')
    return { text: `${input.quantity} × ${input.sku}, ${parents.quote.cents} cents` }
  }
}

const [servers, steps] = process.argv.slice(2)
const events = steps.split('.steps.')[0] + '.events'
const secrets = (process.env.FLOWPILOT_STEP_SECRET ?? '').split(',').map(each => each.trim()).filter(Boolean)
const client = { clientId: 'node', bootstrapBrokers: servers.split(',') }
const producer = new Producer({ ...client, serializers: stringSerializers, acks: ProduceAcks.ALL })
const groupId = steps.replace('.steps.', '.worker.')
const consumer = new Consumer({ ...client, groupId, deserializers: stringDeserializers })

function isGenuine ({ value, headers }) { // signed by the engine, if there is a secret
  const given = Buffer.from(headers.get('fp-mac') ?? '')
  const macs = secrets.map(each => createHmac('sha256', each).update(`${steps}\n${value ?? ''}`).digest('hex'))
  return !secrets.length || macs.some(mac => given.length === 67 && timingSafeEqual(given, Buffer.from(`v1:${mac}`)))
}

async function answer (record, step, type, fields) { // to the events topic beside the queue, whatever the message says
  const value = JSON.stringify({ v: 1, type, task_id: step.task_id, worker_id: 'node', ...fields })
  const key = step.task_id.split('/')[0].split('.')[0]
  await producer.send({ messages: [{ topic: events, partition: step.reply.partition, key, value }] })
  await record.commit() // only now: the answer, or the step.started, is acknowledged
}

const { topics } = await consumer.metadata({ topics: [steps] })
const partitions = topics.get(steps).partitionsCount
const records = await consumer.consume({
  topics: [steps], mode: 'committed', fallbackMode: 'earliest', autocommit: false,
  sessionTimeout: 6000, heartbeatInterval: 2000
})
for await (const record of records) {
  if (!isGenuine(record)) {
    console.log('not signed by the engine:', record.partition, record.offset)
    await record.commit()
    continue
  }
  const step = JSON.parse(record.value)
  console.log('runs', step.task_id)
  const at = { broker_task_id: `${steps}/${record.partition}/${record.offset}`, dispatch: step.dispatch, partitions }
  const running = (async () => handlers[step.step](step))().then(
    output => ['step.completed', { output }],
    ({ name, message }) => ['step.failed', { error: { kind: step.step in handlers ? name : 'not_served', message }, ...at }]
  )
  let ended
  for (let beat = 1000, say = 'step.started'; !ended; beat = step.heartbeat_ms / 3, say = 'step.heartbeat') {
    ended = await Promise.race([running, sleep(beat)]) // undefined: it runs long, and the engine is to watch it
    await answer(record, step, ...(ended ?? [say]))
  }
}
