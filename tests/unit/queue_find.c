/* Finding and listing among many messages, with a private redis-server: every kind of term,
 * filters, paging, what became of the index's segments, and that the work of a call does not follow
 * the length of the queue. */
#include "queue_harness.h"

#include "queue/search.h"

enum {
    COUNT = 10000,
    IN_FLIGHT = 512,
    FOUND_MAX = 4000,
};

/* The answer of a Redis command, cut. */
static void redis_say(const struct rig *rig, const char *command, char *out, size_t out_bytes)
{
    char line[512];
    (void)snprintf(line, sizeof(line), "redis-cli -s '%s' --raw %s", rig->socket_path, command);
    FILE *pipe = popen(line, "re");
    assert_non_null(pipe);
    size_t len = fread(out, 1, out_bytes - 1, pipe);
    out[len] = '\0';
    while (len > 0 && out[len - 1] == '\n') {
        out[--len] = '\0';
    }
    assert_int_equal(pclose(pipe), 0);
}

static long redis_number(const struct rig *rig, const char *command)
{
    char text[64];
    redis_say(rig, command, text, sizeof(text));
    return strtol(text, NULL, 10);
}

/* Message i of the crowd. */
struct crowd {
    struct draft draft;
    char addresses[2][64];
    char sender[64];
    char message_id[64];
    char source[64];
    char tags[64];
};

static const struct message *crowd_fill(struct crowd *crowd, struct queue *queue, size_t i)
{
    draft_fill(&crowd->draft, queue, i % 2 == 0 ? "erp" : "zabbix",
               i % 10 == 0 ? "alert" : "normal", 1, i % 1000 == 0 ? 2 : 1);
    struct message *message = &crowd->draft.message;
    (void)snprintf(crowd->addresses[0], 64, "User%zu@dept%zu.contoso.com", i, i % 10);
    (void)snprintf(crowd->addresses[1], 64, "all@fabrikam.example");
    (void)snprintf(crowd->sender, 64, "sender%zu@contoso.com", i % 5);
    (void)snprintf(crowd->message_id, 64, "<%zu@erp.contoso.com>", i);
    (void)snprintf(crowd->source, 64, "10.0.0.%zu host%zu.contoso.com", i % 4, i % 4);
    (void)snprintf(crowd->tags, 64, "run%zu\nnightly\n", i / 1000);
    crowd->draft.recipients[0][0].address = span_of(crowd->addresses[0]);
    crowd->draft.recipients[0][1].address = span_of(crowd->addresses[1]);
    message->header_from = span_of(crowd->sender);
    message->reverse_path = span_of(crowd->sender);
    message->message_id = span_of(crowd->message_id);
    message->source = span_of(crowd->source);
    message->tags = span_of(crowd->tags);
    return message;
}

static char (*crowd_enqueue(struct handle *handle, size_t count))[MESSAGE_ID_MAX + 1]
{
    static struct crowd crowd;
    char(*ids)[MESSAGE_ID_MAX + 1] = mem_zero(count * sizeof(*ids));
    struct outcome outcome = {.rig = handle->rig};
    for (size_t i = 0; i < count; i++) {
        const struct message *message = crowd_fill(&crowd, handle->queue, i);
        (void)snprintf(ids[i], sizeof(ids[i]), "%s", crowd.draft.id);
        assert_int_equal(queue_enqueue(handle->queue, message, 0, NULL, on_enqueued, &outcome), 0);
        if ((i + 1) % IN_FLIGHT == 0 || i + 1 == count) {
            RIG_WAIT(handle->rig, outcome.done == i + 1);
        }
    }
    assert_int_equal(outcome.ok, count);
    return ids;
}

struct finding {
    struct rig *rig;
    bool done;
    int status;
    char ids[FOUND_MAX][MESSAGE_ID_MAX + 1];
    size_t count, pages;
    char cursor[512];
};

static void on_found(void *ctx, int status, const struct message *messages, size_t count,
                     struct span next)
{
    struct finding *finding = ctx;
    finding->status = status;
    for (size_t i = 0; i < count; i++) {
        assert_in_range(finding->count, 0, FOUND_MAX - 1);
        (void)snprintf(finding->ids[finding->count++], MESSAGE_ID_MAX + 1, "%.*s",
                       SPAN_FMT(messages[i].id));
    }
    assert_in_range(next.len, 0, sizeof(finding->cursor) - 1);
    (void)snprintf(finding->cursor, sizeof(finding->cursor), "%.*s", SPAN_FMT(next));
    finding->pages++;
    finding->done = true;
    loop_stop(finding->rig->loop);
}

static void find_page(struct handle *handle, struct queue_filter filter, struct finding *finding)
{
    char cursor[512];
    memcpy(cursor, finding->cursor, sizeof(cursor));
    filter.cursor = span_of(cursor);
    finding->rig = handle->rig;
    finding->done = false;
    assert_int_equal(queue_list(handle->queue, &filter, on_found, finding), 0);
    RIG_WAIT(handle->rig, finding->done);
    assert_int_equal(finding->status, 0);
}

/* All pages. */
static size_t find_all(struct handle *handle, struct queue_filter filter, struct finding *finding)
{
    memset(finding, 0, sizeof(*finding));
    filter.limit = filter.limit > 0 ? filter.limit : 100;
    do {
        find_page(handle, filter, finding);
    } while (finding->cursor[0] != '\0');
    return finding->count;
}

#define FIND(handle, finding, ...) find_all((handle), (struct queue_filter){__VA_ARGS__}, (finding))

static void assert_newest_first(const struct finding *finding, char (*ids)[MESSAGE_ID_MAX + 1],
                                size_t first, size_t step)
{
    /* Two messages of one millisecond may change places, never two of different ones. */
    for (size_t i = 0; i < finding->count; i++) {
        assert_memory_equal(finding->ids[i], ids[first - i * step], 10);
    }
}

static int test_setup(void **state)
{
    struct rig *rig = mem_zero(sizeof(*rig));
    rig_init(rig);
    rig_start_server(rig);
    *state = rig;
    return 0;
}

static int test_teardown(void **state)
{
    rig_release(*state);
    mem_free(*state);
    return 0;
}

static void test_terms(void **state)
{
    struct rig *rig = *state;
    struct queue_conf conf = rig->conf;
    static struct handle handle;
    static struct finding finding;
    conf.shards = 2;
    handle_open(rig, &handle, &conf);
    char(*ids)[MESSAGE_ID_MAX + 1] = crowd_enqueue(&handle, COUNT);
    /* Both shards have more than one segment and a tail. */
    assert_in_range(redis_number(rig, "HGET {h0}:k segments"), 1, 5);
    assert_in_range(redis_number(rig, "HGET {h1}:k segments"), 1, 5);

    assert_int_equal(FIND(&handle, &finding, .text = SPAN_LIT("user1234@DEPT4.contoso.com")), 1);
    assert_string_equal(finding.ids[0], ids[1234]);
    assert_int_equal(FIND(&handle, &finding, .text = SPAN_LIT(" <4321@erp.contoso.com>")), 1);
    assert_string_equal(finding.ids[0], ids[4321]);
    assert_int_equal(FIND(&handle, &finding, .message_id = SPAN_LIT("99@ERP.contoso.com")), 1);
    assert_string_equal(finding.ids[0], ids[99]);
    assert_int_equal(FIND(&handle, &finding, .text = span_of(ids[777])), 1);
    assert_string_equal(finding.ids[0], ids[777]);
    assert_int_equal(FIND(&handle, &finding, .text = SPAN_LIT("all@fabrikam.example")), 10);
    assert_newest_first(&finding, ids, 9000, 1000);
    assert_int_equal(FIND(&handle, &finding, .text = SPAN_LIT("10.0.0.3")), COUNT / 4);
    assert_newest_first(&finding, ids, COUNT - 1, 4);
    assert_in_range(finding.pages, 25, 30);
    assert_int_equal(FIND(&handle, &finding, .text = SPAN_LIT("HOST2.contoso.com"), .limit = 500),
                     COUNT / 4);
    assert_newest_first(&finding, ids, COUNT - 2, 4);
    assert_int_equal(FIND(&handle, &finding, .tag = SPAN_LIT("Run3")), 1000);
    assert_newest_first(&finding, ids, 3999, 1);
    assert_int_equal(FIND(&handle, &finding, .address = SPAN_LIT("@dept7.contoso.com")), 1000);
    assert_int_equal(FIND(&handle, &finding, .domain = SPAN_LIT("dept7.contoso.com")), 1000);
    assert_int_equal(FIND(&handle, &finding, .sender = SPAN_LIT("Sender2@contoso.com")), 2000);

    assert_int_equal(FIND(&handle, &finding, .text = SPAN_LIT("nobody@contoso.com")), 0);
    assert_int_equal(FIND(&handle, &finding, .tag = SPAN_LIT("user1234@dept4.contoso.com")), 0);
    assert_int_equal(FIND(&handle, &finding, .text = SPAN_LIT("01JDF3Q8ZK5W1T7R9N2B4C6D8E-0")), 0);
    mem_free(ids);
    handle_close(&handle);
}

static void test_filters(void **state)
{
    struct rig *rig = *state;
    static struct handle handle;
    static struct finding finding;
    static struct claimed claimed;
    handle_open(rig, &handle, &rig->conf);
    char(*ids)[MESSAGE_ID_MAX + 1] = crowd_enqueue(&handle, 200);
    struct span tag = SPAN_LIT("run0");
    assert_int_equal(FIND(&handle, &finding, .tag = tag, .client = SPAN_LIT("erp")), 100);
    assert_int_equal(FIND(&handle, &finding, .tag = tag, .lane = SPAN_LIT("alert")), 20);
    assert_int_equal(FIND(&handle, &finding, .tag = tag, .backend = SPAN_LIT("hve")), 200);
    assert_int_equal(FIND(&handle, &finding, .tag = tag, .backend = SPAN_LIT("acs")), 0);
    assert_int_equal(FIND(&handle, &finding, .tag = tag, .sender = SPAN_LIT("sender1@contoso.com"),
                          .domain = SPAN_LIT("dept1.contoso.com")),
                     20);
    assert_int_equal(FIND(&handle, &finding, .tag = tag, .since_ms = clock_wall_ms() + 3600000), 0);
    assert_int_equal(FIND(&handle, &finding, .tag = tag, .since_ms = clock_wall_ms() - 3600000),
                     200);
    assert_int_equal(FIND(&handle, &finding, .tag = tag, .before_ms = clock_wall_ms() - 3600000),
                     0);
    assert_int_equal(FIND(&handle, &finding, .before_ms = clock_wall_ms() + 1000), 200);
    assert_int_equal(FIND(&handle, &finding, .since_ms = clock_wall_ms() + 3600000), 0);

    /* Five end, five are held, five are delayed; five stay claimed. */
    claim_wait(&handle, "normal", "hve", 20, &claimed);
    assert_int_equal(claimed.count, 20);
    for (size_t i = 0; i < 15; i++) {
        enum queue_next next = i < 5    ? QUEUE_NEXT_DONE
                               : i < 10 ? QUEUE_NEXT_HOLD
                                        : QUEUE_NEXT_DELAY;
        if (next == QUEUE_NEXT_DONE) {
            lease_finish(claimed.leases[i], RECIPIENT_FAILED);
        }
        assert_int_equal(settle_wait(&handle, &claimed.leases[i], next, clock_wall_ms() + 3600000),
                         0);
    }
    for (int opened = 0; opened < 2; opened++) { /* by the index, then by the open messages */
        struct queue_filter filter = {.unfinished_only = opened == 1};
        filter.tag = opened == 0 ? tag : (struct span){0};
        filter.recipient_states = 1u << RECIPIENT_FAILED;
        assert_int_equal(find_all(&handle, filter, &finding), opened == 0 ? 5 : 0);
        filter.recipient_states = 0;
        filter.batch_states = 1u << BATCH_HELD;
        assert_int_equal(find_all(&handle, filter, &finding), 5);
        filter.batch_states = 1u << BATCH_DELAYED | 1u << BATCH_CLAIMED;
        filter.limit = 3;
        assert_int_equal(find_all(&handle, filter, &finding), 10);
        filter.batch_states = 0;
        filter.unfinished_only = true;
        filter.limit = 7;
        assert_int_equal(find_all(&handle, filter, &finding), 195);
    }
    for (size_t i = 15; i < 20; i++) {
        queue_release(handle.queue, claimed.leases[i]);
        queue_lease_free(&claimed.leases[i]);
    }
    mem_free(ids);
    handle_close(&handle);
}

/* What is delayed or held is listed off its own sets, whatever else waits: each message once,
 * though its batches stand in two sets, the one due last first. */
static void test_states(void **state)
{
    enum { DELAYED = 100, BATCHES = 5 };
    struct rig *rig = *state;
    struct queue_conf conf = rig->conf;
    static struct handle handle;
    static struct finding finding;
    static struct draft draft;
    static char ids[DELAYED][MESSAGE_ID_MAX + 1];
    conf.shards = 2;
    handle_open(rig, &handle, &conf);
    mem_free(crowd_enqueue(&handle, 1000));
    int64_t due_ms = clock_wall_ms() + 3600000;
    for (size_t i = 0; i < DELAYED; i++) {
        /* Of one the batches are in one set, of the next in both, of the third it is only one. */
        draft_fill(&draft, handle.queue, "erp", "normal", i % 3 < 2 ? BATCHES : 1, 1);
        for (size_t batch = 0; i % 3 < 2 && batch < BATCHES; batch += i % 3 + 1) {
            draft.batches[batch].backend = SPAN_LIT("acs");
        }
        draft.message.expires_ms = due_ms + 3600000;
        memcpy(ids[i], draft.id, sizeof(ids[i]));
        /* Pairs of messages are due in the same millisecond. */
        assert_int_equal(
            enqueue_wait(&handle, &draft.message, due_ms + 1000 * (int64_t)(i / 2), NULL, NULL), 0);
    }
    static const size_t limits[] = {1, 3, 7, 90, 200};
    struct queue_filter filter = {.batch_states = 1u << BATCH_DELAYED};
    for (size_t i = 0; i < sizeof(limits) / sizeof(limits[0]); i++) {
        filter.limit = limits[i];
        assert_int_equal(find_all(&handle, filter, &finding), DELAYED);
        for (size_t at = 0; at < DELAYED; at += 2) {
            size_t pair = DELAYED - 2 - at;
            bool same = strcmp(finding.ids[at], ids[pair]) == 0;
            assert_string_equal(finding.ids[at], ids[same ? pair : pair + 1]);
            assert_string_equal(finding.ids[at + 1], ids[same ? pair + 1 : pair]);
        }
        assert_in_range(finding.pages, DELAYED / limits[i], DELAYED / limits[i] + 2);
    }
    filter.backend = SPAN_LIT("acs");
    assert_int_equal(find_all(&handle, filter, &finding), DELAYED * 2 / 3 + 1);
    filter.client = SPAN_LIT("zabbix");
    assert_int_equal(find_all(&handle, filter, &finding), 0);
    filter.client = (struct span){0};
    filter.lane = SPAN_LIT("alert");
    assert_int_equal(find_all(&handle, filter, &finding), 0);
    filter.lane = (struct span){0};
    filter.batch_states = 1u << BATCH_HELD;
    assert_int_equal(find_all(&handle, filter, &finding), 0);
    filter.cursor = SPAN_LIT("12~x.0");
    assert_int_equal(queue_list(handle.queue, &filter, on_found, &finding), ERR_INVAL);
    handle_close(&handle);
}

/* More clients with work than are read at a time: all are counted. */
static void test_many_clients(void **state)
{
    enum { CLIENTS = 2300 };
    struct rig *rig = *state;
    static struct handle handle;
    static struct draft draft;
    struct outcome outcome = {.rig = rig};
    handle_open(rig, &handle, &rig->conf);
    int64_t before_ms = clock_wall_ms();
    for (size_t i = 0; i < CLIENTS; i++) {
        char client[32];
        (void)snprintf(client, sizeof(client), "client%zu", i);
        draft_fill(&draft, handle.queue, client, "normal", 1, 1);
        assert_int_equal(
            queue_enqueue(handle.queue, &draft.message, 0, NULL, on_enqueued, &outcome), 0);
    }
    RIG_WAIT(rig, outcome.done == CLIENTS);
    assert_int_equal(outcome.ok, CLIENTS);
    struct totals_seen seen = totals_wait(&handle);
    assert_int_equal(seen.depth.batches[BATCH_READY], CLIENTS);
    assert_in_range(seen.depth.since_ms[BATCH_READY], before_ms - 500, clock_wall_ms() + 500);
    handle_close(&handle);
}

/* Other terms with the hash of the one looked for, and messages that are gone, are passed over. */
static void test_collisions(void **state)
{
    struct rig *rig = *state;
    static struct handle handle;
    static struct finding finding;
    static struct draft draft;
    enum { TEXTS = 200000 };
    /* By the birthday bound about five pairs of so many texts share 32 bits. */
    uint32_t *hashes = mem_alloc(TEXTS * sizeof(*hashes));
    size_t a = 0;
    size_t b = 0;
    static uint32_t table[1 << 19]; /* open addressing: index + 1 */
    char text[2][64];
    for (size_t i = 0; i < TEXTS && b == 0; i++) {
        (void)snprintf(text[0], sizeof(text[0]), "u%zu@contoso.com", i);
        hashes[i] = search_hash(span_of(text[0]));
        size_t at = hashes[i] % (1 << 19);
        for (; table[at] != 0; at = (at + 1) % (1 << 19)) {
            if (hashes[table[at] - 1] == hashes[i]) {
                a = table[at] - 1;
                b = i;
            }
        }
        table[at] = (uint32_t)i + 1;
    }
    mem_free(hashes);
    assert_int_not_equal(b, 0);
    handle_open(rig, &handle, &rig->conf);
    char ids[6][MESSAGE_ID_MAX + 1];
    for (size_t i = 0; i < 6; i++) {
        draft_fill(&draft, handle.queue, "erp", "normal", 1, 1);
        (void)snprintf(text[i % 2], sizeof(text[0]), "u%zu@contoso.com", i % 2 == 0 ? a : b);
        draft.recipients[0][0].address = span_of(text[i % 2]);
        memcpy(ids[i], draft.id, sizeof(ids[i]));
        assert_int_equal(enqueue_wait(&handle, &draft.message, 0, NULL, NULL), 0);
    }
    assert_int_equal(search_hash(span_of(text[0])), search_hash(span_of(text[1])));
    assert_int_equal(FIND(&handle, &finding, .text = span_of(text[0])), 3);
    assert_string_equal(finding.ids[0], ids[4]);
    assert_string_equal(finding.ids[2], ids[0]);
    char command[128];
    (void)snprintf(command, sizeof(command), "DEL '{h0}:m:%s'", ids[2]);
    assert_int_equal(redis_number(rig, command), 1);
    assert_int_equal(FIND(&handle, &finding, .text = span_of(text[0]), .limit = 1), 2);
    assert_string_equal(finding.ids[1], ids[0]);
    handle_close(&handle);
}

/* Paging goes on where it was while the tail becomes a segment and is sorted; unsorted segments are
 * found, and sorted by who finds them; they have an end, and those before the end are not asked
 * for. */
static void test_segments(void **state)
{
    struct rig *rig = *state;
    static struct handle handle;
    static struct finding finding;
    char text[64];
    handle_open(rig, &handle, &rig->conf);
    char(*first)[MESSAGE_ID_MAX + 1] = crowd_enqueue(&handle, 500);
    assert_int_equal(redis_number(rig, "EXISTS '{h0}:s:0'"), 0);
    struct queue_filter filter = {.text = SPAN_LIT("nightly"), .limit = 100};
    memset(&finding, 0, sizeof(finding));
    find_page(&handle, filter, &finding);
    find_page(&handle, filter, &finding);
    assert_int_equal(finding.count, 200);
    char(*second)[MESSAGE_ID_MAX + 1] = crowd_enqueue(&handle, 3000);
    assert_int_equal(redis_number(rig, "EXISTS '{h0}:s:0'"), 1);
    while (finding.cursor[0] != '\0') {
        find_page(&handle, filter, &finding);
    }
    assert_int_equal(finding.count, 500);
    for (size_t i = 0; i < 500; i++) {
        assert_string_equal(finding.ids[i], first[499 - i]);
    }
    /* Sorted by now, for answers come in order; it lives for the retention and four days. */
    assert_int_equal(redis_number(rig, "STRLEN '{h0}:s:0'") % 20, 4);
    assert_in_range(redis_number(rig, "TTL '{h0}:s:0'"), 3600 + 4 * 86400 - 100, 3600 + 4 * 86400);
    redis_say(rig,
              "EVAL \"return redis.call('SET', KEYS[1], redis.call('GETRANGE', KEYS[1], 4104, -1), "
              "'KEEPTTL')\" 1 '{h0}:s:0'",
              text, sizeof(text));
    assert_string_equal(text, "OK");
    assert_int_equal(redis_number(rig, "STRLEN '{h0}:s:0'") % 20, 0);
    assert_int_equal(FIND(&handle, &finding, .text = SPAN_LIT("nightly")), 3500);
    assert_int_equal(redis_number(rig, "STRLEN '{h0}:s:0'") % 20, 4);
    assert_int_equal(FIND(&handle, &finding, .text = SPAN_LIT("nightly")), 3500);
    assert_int_equal(redis_number(rig, "DEL '{h0}:s:0'"), 1);
    assert_in_range(FIND(&handle, &finding, .text = SPAN_LIT("nightly")), 500, 2000);
    mem_free(first);
    mem_free(second);
    handle_close(&handle);
}

static long calls_of(const struct rig *rig, const char *command)
{
    char ask[200];
    (void)snprintf(ask, sizeof(ask),
                   "INFO commandstats | sed -n 's/^cmdstat_%s:calls=\\([0-9]*\\),.*/\\1/p'",
                   command);
    return redis_number(rig, ask);
}

/* Commands inside scripts are counted with the others. */
static long calls_total(const struct rig *rig)
{
    return redis_number(rig,
                        "INFO commandstats | grep -v 'cmdstat_\\(info\\|config\\|evalsha\\)' | "
                        "sed -n 's/^cmdstat_[^:]*:calls=\\([0-9]*\\),.*/\\1/p' | "
                        "awk '{sum += $1} END {print sum}'");
}

/* The commands Redis runs for one look of each kind. */
static long looks_cost(struct handle *handle)
{
    static struct finding finding;
    static const struct queue_filter filters[] = {
        {.limit = 50},
        {.limit = 50, .unfinished_only = true},
        {.limit = 50, .unfinished_only = true, .client = {.data = "erp", .len = 3}},
        {.limit = 50, .unfinished_only = true, .batch_states = 1u << BATCH_HELD},
        {.limit = 50, .lane = {.data = "none", .len = 4}},
    };
    long before = calls_total(handle->rig);
    for (size_t i = 0; i < sizeof(filters) / sizeof(filters[0]); i++) {
        memset(&finding, 0, sizeof(finding));
        find_page(handle, filters[i], &finding);
    }
    (void)totals_wait(handle);
    return calls_total(handle->rig) - before;
}

static void test_cost(void **state)
{
    enum { FEW = 2000, MANY = 18000 };
    struct rig *rig = *state;
    static struct handle handle;
    static struct finding finding;
    handle_open(rig, &handle, &rig->conf);
    mem_free(crowd_enqueue(&handle, FEW));
    RIG_WAIT(rig, handle.hints > 0);
    long few = looks_cost(&handle);
    mem_free(crowd_enqueue(&handle, MANY));
    long many = looks_cost(&handle);
    /* A sweep may fall into either: it is 7 commands when there is nothing to do. */
    assert_in_range(many, few - 40, few + 40);
    assert_in_range(few, 300, 1500);

    /* Finding: four commands for each segment, each of 2,000 messages and more. */
    long segments = redis_number(rig, "HGET '{h0}:k' segments");
    long before = calls_total(rig);
    memset(&finding, 0, sizeof(finding));
    find_page(&handle,
              (struct queue_filter){.text = SPAN_LIT("user5@dept5.contoso.com"), .limit = 5},
              &finding);
    assert_int_equal(finding.count, 2);
    assert_in_range(segments, 5, 10);
    assert_in_range(calls_total(rig) - before, 3 * segments, 4 * segments + 60);
    assert_int_equal(calls_of(rig, "keys"), 0);
    assert_int_equal(calls_of(rig, "scan"), 0);
    handle_close(&handle);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_terms, test_setup, test_teardown),
        cmocka_unit_test_setup_teardown(test_filters, test_setup, test_teardown),
        cmocka_unit_test_setup_teardown(test_states, test_setup, test_teardown),
        cmocka_unit_test_setup_teardown(test_many_clients, test_setup, test_teardown),
        cmocka_unit_test_setup_teardown(test_collisions, test_setup, test_teardown),
        cmocka_unit_test_setup_teardown(test_segments, test_setup, test_teardown),
        cmocka_unit_test_setup_teardown(test_cost, test_setup, test_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
