// kafka.js against a broker: node client.js BOOTSTRAP write RECORDS PREFIX | read (TOPIC RECORDS)...; see ../clients.py.
const fs = require('fs')
const assert = require('assert')
const { Kafka, logLevel, CompressionCodecs, CompressionTypes, ConfigResourceTypes } = require('kafkajs')
CompressionCodecs[CompressionTypes.Snappy] = require('kafkajs-snappy')

const [bootstrap, mode, ...rest] = process.argv.slice(2)
const kafka = new Kafka({ clientId: 'kafkajs', brokers: [bootstrap], logLevel: logLevel.NOTHING, retry: { initialRetryTime: 50, maxRetryTime: 500, retries: 120 } })
const sleep = ms => new Promise(done => setTimeout(done, ms))
const fresh = name => `${name}-${Math.random().toString(36).slice(2, 10)}`
// LZ4 and zstd need packages that are built with native code.
const CODECS = { none: CompressionTypes.None, gzip: CompressionTypes.GZIP, snappy: CompressionTypes.Snappy }

const until = async (what, done, seconds = 60) => {
  const end = Date.now() + seconds * 1000
  for (;;) {
    const found = await done()
    if (found) return found
    if (Date.now() > end) throw new Error(`${what}: not within ${seconds} s`)
    await sleep(20)
  }
}

const bytes = text => (text === null ? null : Buffer.from(text, 'base64'))
const load = file => JSON.parse(fs.readFileSync(file)).map(r => ({
  key: bytes(r.key), value: bytes(r.value), timestamp: String(r.timestamp), headers: r.headers.map(h => [h.key, bytes(h.value)]),
}))

// kafka.js keeps headers in an object: names that are repeated have an array.
const toObject = headers => {
  const found = {}
  for (const [k, v] of headers) found[k] = k in found ? [].concat(found[k], [v]) : v
  return found
}

const withAdmin = async f => {
  const admin = kafka.admin()
  await admin.connect()
  try { return await f(admin) } finally { await admin.disconnect() }
}

const create = async (topic, numPartitions = 1, config = {}) => {
  const configEntries = Object.entries(config).map(([name, value]) => ({ name, value }))
  await withAdmin(admin => admin.createTopics({ topics: [{ topic, numPartitions, replicationFactor: 1, configEntries }] }))
  return topic
}

// All of a topic up to its end now. kafka.js has no consumer without a group.
const everything = async (topic, readUncommitted = true) => {
  const consumer = kafka.consumer({ groupId: fresh('everything'), readUncommitted, sessionTimeout: 10000 })
  const ends = await withAdmin(admin => admin.fetchTopicOffsets(topic))
  const open = new Set(ends.filter(e => e.high !== e.low).map(e => e.partition))
  const found = []
  await consumer.connect()
  await consumer.subscribe({ topic, fromBeginning: true })
  const high = Object.fromEntries(ends.map(e => [e.partition, BigInt(e.high)]))
  await consumer.run({
    eachBatchAutoResolve: true,
    eachBatch: async ({ batch }) => {
      for (const m of batch.messages) found.push({ ...m, partition: batch.partition })
      if (BigInt(batch.lastOffset()) + 1n >= high[batch.partition]) open.delete(batch.partition)
    },
  })
  await until(`the end of ${topic}`, () => open.size === 0)
  await consumer.disconnect()
  return found
}

const read = async (topic, records) => {
  const found = await everything(topic)
  const plain = m => ({ key: m.key, value: m.value, timestamp: String(m.timestamp), headers: m.headers })
  assert.deepStrictEqual(found.map(plain), records.map(r => plain({ ...r, headers: toObject(r.headers) })), topic)
  assert.deepStrictEqual(found.map(m => Number(m.offset)), records.map((_, i) => i), `offsets of ${topic}`)
}

async function roundTrips(records, prefix) {
  for (const [codec, compression] of Object.entries(CODECS)) {
    const topic = await create(prefix + codec)
    const producer = kafka.producer()
    await producer.connect()
    const messages = records.map(r => ({ ...r, headers: toObject(r.headers) }))
    const [answer] = await producer.send({ topic, compression, acks: -1, messages })
    assert.strictEqual(answer.baseOffset, '0')
    await producer.disconnect()
    await read(topic, records)
  }
}

class Member {
  constructor(topic, group) {
    this.topic = topic
    this.seen = []
    this.assigned = []
    this.consumer = kafka.consumer({ groupId: group, sessionTimeout: 6000, heartbeatInterval: 500, maxWaitTimeInMs: 100 })
    this.consumer.on(this.consumer.events.GROUP_JOIN, e => { this.assigned = e.payload.memberAssignment[topic] || [] })
  }

  async start() {
    await this.consumer.connect()
    await this.consumer.subscribe({ topic: this.topic, fromBeginning: true })
    await this.consumer.run({ eachMessage: async ({ message }) => { this.seen.push(message.value.toString()) } })
    return this
  }

  stop() { return this.consumer.disconnect() } // commits what was seen
}

const numbers = (a, b) => Array.from({ length: b - a }, (_, i) => String(a + i))
const sameSet = (found, expected) => { const s = new Set(found); return s.size === expected.length && expected.every(e => s.has(e)) }

// Two members: one joins, one leaves; nothing is missed; a third goes on where they committed.
async function groups() {
  const topic = await create(fresh('kafkajs'), 4)
  const group = fresh('kafkajs')
  const producer = kafka.producer({ idempotent: true })
  await producer.connect()
  const write = (a, b) => producer.send({ topic, messages: numbers(a, b).map(i => ({ value: i, partition: i % 4 })) })
  await write(0, 100)
  const first = await new Member(topic, group).start()
  await until('the first member reads all', () => first.assigned.length === 4 && sameSet(first.seen, numbers(0, 100)))
  const second = await new Member(topic, group).start()
  await until('two members share', () => first.assigned.length === 2 && second.assigned.length === 2)
  await write(100, 200)
  await until('two members read all', () => sameSet([...first.seen, ...second.seen], numbers(0, 200)))
  await first.stop()
  await until('the second member has all', () => second.assigned.length === 4)
  await write(200, 240)
  await until('the second member reads all', () => sameSet([...first.seen, ...second.seen], numbers(0, 240)))
  await withAdmin(async admin => {
    const { groups: [described] } = await admin.describeGroups([group])
    assert.deepStrictEqual([described.state, described.members.length, described.protocolType], ['Stable', 1, 'consumer'])
  })
  await second.stop()
  await withAdmin(async admin => {
    const [{ partitions }] = await admin.fetchOffsets({ groupId: group, topics: [topic] })
    assert.deepStrictEqual(partitions.map(p => p.offset), ['60', '60', '60', '60'], 'committed offsets')
  })
  await write(240, 250)
  const third = await new Member(topic, group).start()
  await until('the third member goes on', () => third.seen.length >= 10)
  await third.stop()
  assert.deepStrictEqual(third.seen.sort(), numbers(240, 250))
  await withAdmin(async admin => {
    assert((await admin.listGroups()).groups.some(g => g.groupId === group))
    await admin.deleteGroups([group])
    assert(!(await admin.listGroups()).groups.some(g => g.groupId === group))
  })
  await producer.disconnect()
}

async function transactions() {
  const topic = await create(fresh('kafkajs'))
  const source = await create(fresh('kafkajs'))
  const group = fresh('kafkajs')
  const options = { transactionalId: fresh('kafkajs'), maxInFlightRequests: 1, idempotent: true, retry: { retries: 5 } }
  const producer = kafka.producer(options)
  await producer.connect()
  for (const [round, commit] of [true, false, true, false, true].entries()) {
    const transaction = await producer.transaction()
    await transaction.send({ topic, messages: numbers(0, 10).map(i => ({ value: `${round}-${i}` })) })
    await transaction.sendOffsets({ consumerGroupId: group, topics: [{ topic: source, partitions: [{ partition: 0, offset: String(round + 1) }] }] })
    await (commit ? transaction.commit() : transaction.abort())
  }
  const expected = [0, 2, 4].flatMap(round => numbers(0, 10).map(i => `${round}-${i}`))
  assert.deepStrictEqual((await everything(topic, false)).map(m => m.value.toString()), expected)
  assert.strictEqual((await everything(topic)).length, 50)
  const [{ partitions }] = await withAdmin(admin => admin.fetchOffsets({ groupId: group, topics: [source] }))
  assert.strictEqual(partitions[0].offset, '5')
  const other = kafka.producer(options)
  await other.connect()
  const successor = await other.transaction() // only now it asks for its producer id
  await assert.rejects(async () => {
    const transaction = await producer.transaction()
    await transaction.send({ topic, messages: [{ value: 'zombie' }] })
    await transaction.commit()
  }, e => /PRODUCER_FENCED|INVALID_PRODUCER_EPOCH/.test(e.type || (e.cause && e.cause.type)))
  await successor.send({ topic, messages: [{ value: 'successor' }] })
  await successor.commit()
  assert.deepStrictEqual((await everything(topic, false)).map(m => m.value.toString()), [...expected, 'successor'])
  await producer.disconnect()
  await other.disconnect()
}

async function administration() {
  const topic = await create(fresh('kafkajs'), 2, { 'retention.ms': '3600000', 'cleanup.policy': 'compact' })
  await withAdmin(async admin => {
    const resource = { type: ConfigResourceTypes.TOPIC, name: topic }
    const config = async () => {
      const { resources: [{ configEntries }] } = await admin.describeConfigs({ resources: [resource] })
      return ['retention.ms', 'cleanup.policy'].map(n => configEntries.find(e => e.configName === n).configValue)
    }
    assert.strictEqual(await admin.createTopics({ topics: [{ topic }] }), false, 'a topic was created twice')
    assert((await admin.listTopics()).includes(topic))
    assert.deepStrictEqual(await config(), ['3600000', 'compact'])
    await admin.alterConfigs({ validateOnly: false, resources: [{ ...resource, configEntries: [{ name: 'retention.ms', value: '60000' }] }] })
    assert.deepStrictEqual(await config(), ['60000', 'delete'])
    await admin.createPartitions({ topicPartitions: [{ topic, count: 5 }] })
    assert.strictEqual((await admin.fetchTopicMetadata({ topics: [topic] })).topics[0].partitions.length, 5)
    const producer = kafka.producer()
    await producer.connect()
    await producer.send({ topic, messages: numbers(0, 10).map(i => ({ value: i, partition: 0 })) })
    await producer.disconnect()
    await admin.deleteTopicRecords({ topic, partitions: [{ partition: 0, offset: '7' }] })
    assert.deepStrictEqual((await everything(topic)).map(m => m.offset), ['7', '8', '9'])
    assert.strictEqual((await admin.describeCluster()).brokers.length, 1)
    await admin.deleteTopics({ topics: [topic] })
    assert(!(await admin.listTopics()).includes(topic))
    await assert.rejects(kafka.admin({ retry: { retries: 0 } }).deleteTopics({ topics: [topic] }))
  })
}

// An idempotent producer goes on over a kill -9 of the broker: every record once, in order.
async function brokerKilled() {
  const topic = await create(fresh('kafkajs'))
  const producer = kafka.producer({ idempotent: true, maxInFlightRequests: 1 })
  await producer.connect()
  for (let i = 0; i < 300; i++) {
    if (i === 100) console.log('kill')
    await producer.send({ topic, messages: numbers(i * 10, i * 10 + 10).map(value => ({ value })) })
  }
  await producer.disconnect()
  assert.deepStrictEqual((await everything(topic)).map(m => m.value.toString()), numbers(0, 3000))
}

async function main() {
  const jobs = []
  if (mode === 'read') for (let i = 0; i < rest.length; i += 2) jobs.push([`read ${rest[i]}`, () => read(rest[i], load(rest[i + 1]))])
  else {
    jobs.push(['roundTrips', () => roundTrips(load(rest[0]), rest[1])])
    for (const f of [groups, transactions, administration, brokerKilled]) jobs.push([f.name, f])
  }
  let failed = 0
  for (const [name, f] of jobs) {
    try {
      await f()
      console.log(`ok ${name}`)
    } catch (e) {
      failed++
      console.error(e)
      console.log(`FAIL ${name}: ${String(e.message).slice(0, 800).replaceAll('\n', ' ')}`)
    }
  }
  process.exit(failed > 0 ? 1 : 0)
}
main()
