/* A load generator for bench/matrix: librdkafka, one line of figures as JSON.
 *
 *   load produce BOOTSTRAP TOPIC PARTITIONS COUNT SIZE OPTION... [key=value of librdkafka...]
 *   load consume BOOTSTRAP TOPIC PARTITIONS COUNT SIZE OPTION...
 *   load latency BOOTSTRAP TOPIC PARTITIONS COUNT SIZE OPTION...
 *
 * produce: as fast as it goes. consume: all partitions from their beginning, by --consumers N threads that each read all of it, timed
 * from the first record on: the half second before it is librdkafka's own, whatever the broker. Its queue has room for all of it, since
 * it pauses for a second whenever that is full.
 * latency: paced by --rate N records a second; the time from the call to the record's arrival at a consumer.
 * --text: values that compress about as JSON does, instead of noise. --keys N: keys in turn, N different ones.
 * --transaction MS: transactions that are committed after so many milliseconds; their times from begin to the answer of the commit are the percentiles.
 */
#include <librdkafka/rdkafka.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const char *bootstrap, *topic;
static long count, size, rate, keys, transaction_ms;
static int partitions, consumers = 1, text;
static int settings_count;
static char **settings;
static long acked, failed, arrived;
static long first_at; /* when the first record came, in microseconds */
static long *times; /* in microseconds */
static long times_count;

static long now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

static void die(const char *what, const char *why) {
    fprintf(stderr, "load: %s: %s\n", what, why);
    exit(2);
}

static void set(rd_kafka_conf_t *conf, const char *name, const char *value) {
    char why[512];
    if (rd_kafka_conf_set(conf, name, value, why, sizeof why) != RD_KAFKA_CONF_OK) die(name, why);
}

static void end_if(rd_kafka_error_t *error, const char *what) {
    if (error) die(what, rd_kafka_error_string(error));
}

static void delivered(rd_kafka_t *client, const rd_kafka_message_t *m, void *opaque) {
    (void)client, (void)opaque;
    if (!m->err) acked++;
    else if (failed++ == 0) fprintf(stderr, "load: a record was not delivered: %s\n", rd_kafka_err2str(m->err));
}

/* The caller's settings come last, so that they win. */
static rd_kafka_t *client(rd_kafka_type_t type, rd_kafka_conf_t *conf) {
    char why[512];
    set(conf, "bootstrap.servers", bootstrap);
    for (int i = 0; i < settings_count; i++) {
        char *name = strdup(settings[i]), *value = strchr(name, '=');
        if (!value) die(name, "neither an option nor key=value");
        *value++ = 0;
        /* The one setting of a consumer's; it knows nothing of a producer's. */
        int reading = !strcmp(name, "isolation.level");
        if (reading == (type == RD_KAFKA_CONSUMER)) set(conf, name, value);
        free(name);
    }
    rd_kafka_t *made = rd_kafka_new(type, conf, why, sizeof why);
    if (!made) die("client", why);
    return made;
}

static rd_kafka_t *producer(int paced) {
    rd_kafka_conf_t *conf = rd_kafka_conf_new();
    set(conf, "acks", "all");
    if (!paced) {
        set(conf, "linger.ms", "5");
        set(conf, "batch.size", "1000000");
        set(conf, "batch.num.messages", "1000000");
        set(conf, "queue.buffering.max.messages", "400000");
        set(conf, "queue.buffering.max.kbytes", "1048576");
    } else {
        set(conf, "linger.ms", "0");
    }
    if (transaction_ms) set(conf, "transactional.id", "bench-load");
    rd_kafka_conf_set_dr_msg_cb(conf, delivered);
    rd_kafka_t *made = client(RD_KAFKA_PRODUCER, conf);
    if (transaction_ms) end_if(rd_kafka_init_transactions(made, 30000), "init_transactions");
    return made;
}

static void fill(char *value) {
    static const char *words = "{\"player\": 7, \"position_x\": 53.2718, \"position_y\": 31.4159, \"speed\": 4.21, \"match\": \"home\", \"ok\": true}, ";
    long words_length = strlen(words);
    unsigned x = 2463534242u;
    for (long i = 0; i < size; i++) {
        x ^= x << 13, x ^= x >> 17, x ^= x << 5;
        value[i] = !text ? (char)x : x % 8 ? words[i % words_length] : (char)('0' + x / 8 % 10);
    }
}

static void send_one(rd_kafka_t *p, rd_kafka_topic_t *t, long n, char *value) {
    char key[24];
    int length = keys ? snprintf(key, sizeof key, "key-%ld", n * 7919 % keys) : 0;
    while (rd_kafka_produce(t, n % partitions, RD_KAFKA_MSG_F_COPY, value, size, keys ? key : NULL, length, NULL) == -1) {
        if (rd_kafka_last_error() != RD_KAFKA_RESP_ERR__QUEUE_FULL) die("produce", rd_kafka_err2str(rd_kafka_last_error()));
        rd_kafka_poll(p, 5);
    }
}

static void produce(void) {
    rd_kafka_t *p = producer(0);
    rd_kafka_topic_t *t = rd_kafka_topic_new(p, topic, NULL);
    const struct rd_kafka_metadata *seen; /* connects before the clock starts */
    if (!rd_kafka_metadata(p, 0, t, &seen, 10000)) rd_kafka_metadata_destroy(seen);
    char *value = malloc(size);
    fill(value);
    long start = now_us(), begun = 0;
    for (long n = 0; n < count; n++) {
        if (transaction_ms && !begun) {
            end_if(rd_kafka_begin_transaction(p), "begin_transaction");
            begun = now_us();
        }
        send_one(p, t, n, value);
        if (n % 1000 == 0) rd_kafka_poll(p, 0);
        if (begun && n % 64 == 0 && now_us() - begun > transaction_ms * 1000) {
            end_if(rd_kafka_commit_transaction(p, 60000), "commit_transaction");
            if (times_count < count) times[times_count++] = now_us() - begun;
            begun = 0;
        }
    }
    if (begun) end_if(rd_kafka_commit_transaction(p, 60000), "commit_transaction");
    rd_kafka_flush(p, 300000);
    printf("{\"seconds\": %f, \"records\": %ld, \"failed\": %ld", (now_us() - start) / 1e6, acked, failed);
}

static void *consume_all(void *from) {
    rd_kafka_conf_t *conf = rd_kafka_conf_new();
    set(conf, "group.id", "bench-load");
    set(conf, "enable.auto.commit", "false");
    set(conf, "queued.max.messages.kbytes", "2097151");
    set(conf, "queued.min.messages", "1000000");
    set(conf, "fetch.message.max.bytes", "1048576");
    rd_kafka_t *c = client(RD_KAFKA_CONSUMER, conf);
    rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(partitions);
    for (int i = 0; i < partitions; i++)
        rd_kafka_topic_partition_list_add(list, topic, i)->offset = from ? RD_KAFKA_OFFSET_END : RD_KAFKA_OFFSET_BEGINNING;
    rd_kafka_poll_set_consumer(c);
    rd_kafka_queue_t *queue = rd_kafka_queue_get_consumer(c);
    rd_kafka_assign(c, list);
    rd_kafka_message_t **some = malloc(10000 * sizeof *some);
    long done = 0, last = now_us();
    while (done < count && now_us() - last < 20000000) {
        ssize_t n = rd_kafka_consume_batch_queue(queue, from ? 1 : 100, some, from ? 100 : 10000);
        long at = now_us(), none = 0;
        if (n > 0) __atomic_compare_exchange_n(&first_at, &none, at, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
        for (ssize_t i = 0; i < n; i++) {
            if (!some[i]->err) {
                done++;
                if (from) {
                    long sent;
                    memcpy(&sent, some[i]->payload, sizeof sent);
                    if (sent > 0 && times_count < count) times[times_count++] = at - sent;
                    __atomic_add_fetch(&arrived, 1, __ATOMIC_SEQ_CST);
                }
            }
            rd_kafka_message_destroy(some[i]);
        }
        if (n > 0) last = at;
    }
    if (done < count) __atomic_add_fetch(&failed, count - done, __ATOMIC_SEQ_CST);
    return NULL;
}

static void consume(void) {
    pthread_t thread[64];
    for (int i = 0; i < consumers; i++) pthread_create(&thread[i], NULL, consume_all, NULL);
    for (int i = 0; i < consumers; i++) pthread_join(thread[i], NULL);
    printf("{\"seconds\": %f, \"records\": %ld, \"failed\": %ld", (now_us() - first_at) / 1e6, count * consumers, failed);
}

static void latency(void) {
    rd_kafka_t *p = producer(1);
    rd_kafka_topic_t *t = rd_kafka_topic_new(p, topic, NULL);
    pthread_t reader;
    pthread_create(&reader, NULL, consume_all, "end");
    char *value = malloc(size);
    fill(value);
    long zero = 0, sent = 0, warm = 0;
    memcpy(value, &zero, sizeof zero);
    /* Records without a time until the reader, which begins at the end, has seen one. */
    while (!__atomic_load_n(&arrived, __ATOMIC_SEQ_CST) && warm++ < 1000) {
        send_one(p, t, warm, value), rd_kafka_poll(p, 0);
        usleep(20000);
    }
    long start = now_us();
    for (; __atomic_load_n(&arrived, __ATOMIC_SEQ_CST) < count && now_us() - start < 120000000; sent++) {
        long due = start + sent * 1000000 / rate, left;
        while ((left = due - now_us()) > 0) usleep(left < 1000 ? left : 1000), rd_kafka_poll(p, 0);
        long at = now_us();
        memcpy(value, &at, sizeof at);
        send_one(p, t, sent, value);
        rd_kafka_poll(p, 0);
    }
    pthread_join(reader, NULL);
    printf("{\"seconds\": %f, \"records\": %ld, \"failed\": %ld", (now_us() - start) / 1e6, arrived, failed);
}

static int by_size(const void *a, const void *b) {
    long x = *(const long *)a, y = *(const long *)b;
    return x < y ? -1 : x > y;
}

int main(int argc, char **argv) {
    if (argc < 7) die("usage", "load produce|consume|latency BOOTSTRAP TOPIC PARTITIONS COUNT SIZE [OPTION...] [key=value...]");
    bootstrap = argv[2], topic = argv[3], partitions = atoi(argv[4]), count = atol(argv[5]), size = atol(argv[6]);
    settings = malloc(argc * sizeof *settings);
    for (int i = 7; i < argc; i++) {
        if (!strcmp(argv[i], "--rate")) rate = atol(argv[++i]);
        else if (!strcmp(argv[i], "--keys")) keys = atol(argv[++i]);
        else if (!strcmp(argv[i], "--transaction")) transaction_ms = atol(argv[++i]);
        else if (!strcmp(argv[i], "--consumers")) consumers = atoi(argv[++i]);
        else if (!strcmp(argv[i], "--text")) text = 1;
        else settings[settings_count++] = argv[i];
    }
    if (consumers > 64 || count < 1 || size < 8 || partitions < 1) die("usage", "at most 64 consumers, records of 8 bytes and more, a partition and more");
    times = malloc(count * sizeof *times);
    if (!strcmp(argv[1], "produce")) produce();
    else if (!strcmp(argv[1], "consume")) consume();
    else if (!strcmp(argv[1], "latency") && rate > 0) latency();
    else die(argv[1], "no such mode, or latency without --rate");
    qsort(times, times_count, sizeof *times, by_size);
    for (int i = 0; times_count && i < 3; i++) {
        static const char *name[] = {"p50", "p99", "p999"};
        static const double share[] = {0.5, 0.99, 0.999};
        printf(", \"%s\": %f", name[i], times[(long)(share[i] * (times_count - 1))] / 1e3);
    }
    printf("}\n");
    fflush(stdout);
    _exit(failed ? 1 : 0);
}
