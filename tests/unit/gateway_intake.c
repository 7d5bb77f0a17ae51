/* Intake in front of a real queue (embedded Redis): what is accepted, what of it is stored, and
 * what is refused with which class. */
#include "gateway/intake.h"

#include "gateway/base/log.h"
#include "tests/unit/queue_harness.h"

#define HEADER                                                                   \
    "From: Boss <boss@contoso.com>\r\nDate: Mon, 23 Nov 2026 10:00:00 +0000\r\n" \
    "Message-ID: <1@contoso.com>\r\nSubject: Hello\r\n"
#define PLAIN HEADER "\r\nText.\r\n"
#define RECIPIENTS_MAX 60

struct world {
    struct rig rig;
    struct handle handle;
    struct events *events;
    struct intake *intake;
    bool reserved;
};

/* One submission and what became of it. */
struct taken {
    struct world *world;
    struct submission submission;
    struct span recipients[RECIPIENTS_MAX];
    size_t results;
    size_t messages_taken;
    bool inside; /* intake_submit() is running */
    enum intake_verdict verdict;
    char detail[200];
    char id[MESSAGE_ID_MAX + 1];
    char answer[100];
    size_t accepted, batches, rejected;
    char first_rejected[100];
};

static const char *const domains[] = {"contoso.com"};
static const uint32_t via_hve[] = {0};
static const uint32_t via_acs[] = {1};
static const struct route_rule rules[] = {
    {.recipient = ROUTE_INTERNAL, .via = via_hve, .via_count = 1},
    {.recipient = ROUTE_EXTERNAL, .lane = "normal", .via = via_acs, .via_count = 1},
};
static const struct route_backend backends[] = {
    {.name = "hve", .recipients_per_message = 50, .internal_only = true},
    {.name = "acs", .recipients_per_message = 50},
};
static const struct route_conf route = {
    .accepted_domains = domains,
    .accepted_count = 1,
    .rules = rules,
    .rule_count = 2,
    .backends = backends,
    .backend_count = 2,
};
static const char *const lane_names[] = {"alert", "normal", "bulk"};
static const int64_t lane_expires_ms[] = {1000000, 2000000, 3000000};
static const struct intake_conf intake_conf = {
    .hostname = "gw.contoso.com",
    .route = &route,
    .lane_names = lane_names,
    .lane_expires_ms = lane_expires_ms,
    .lane_count = 3,
    .max_received = 3,
    .max_message_bytes = 1000000,
};

static const char *const boss_only[] = {"boss@contoso.com"};
static const struct policy_client_conf any_conf = {.name = "any", .may_choose_lane = true};
static const struct policy_client any_client = {.conf = &any_conf}; /* a network: no login */
static const struct policy_client_conf login_conf = {.name = "login", .user = "login"};
static const struct policy_client login_client = {.conf = &login_conf};
static const struct policy_client_conf boss_conf = {
    .name = "boss",
    .from = boss_only,
    .from_count = 1,
    .lane = "bulk",
    .recipients = POLICY_RECIPIENTS_INTERNAL,
};
static const struct policy_client boss_client = {.conf = &boss_conf};

static int setup_with(void **state, uint64_t max_bytes)
{
    static struct world world;
    memset(&world, 0, sizeof world);
    log_configure(LOG_ERROR, LOG_FORM_TEXT, false);
    rig_init(&world.rig);
    rig_start_server(&world.rig);
    world.rig.conf.max_bytes = max_bytes;
    handle_open(&world.rig, &world.handle, &world.rig.conf);
    world.events = events_new();
    world.intake = intake_new(world.rig.loop, world.handle.queue, &intake_conf, world.events);
    *state = &world;
    return 0;
}

static int setup(void **state)
{
    return setup_with(state, 0);
}

static int setup_small(void **state)
{
    return setup_with(state, 5000);
}

static int teardown(void **state)
{
    struct world *world = *state;
    assert_int_equal(intake_pending(world->intake), 0);
    intake_free(&world->intake);
    handle_close(&world->handle);
    events_free(&world->events);
    rig_release(&world->rig);
    return 0;
}

static void on_result(struct submission *submission, const struct intake_result *result)
{
    struct taken *taken = submission->ctx;
    assert_false(taken->inside);
    taken->results++;
    taken->verdict = result->verdict;
    taken->accepted = result->accepted;
    taken->batches = result->batches;
    taken->rejected = result->rejected_count;
    (void)snprintf(taken->detail, sizeof taken->detail, "%s",
                   result->detail != NULL ? result->detail : "");
    (void)snprintf(taken->id, sizeof taken->id, "%.*s", SPAN_FMT(result->id));
    (void)snprintf(taken->answer, sizeof taken->answer, "%.*s", SPAN_FMT(result->answer));
    if (result->rejected_count > 0) {
        (void)snprintf(taken->first_rejected, sizeof taken->first_rejected, "%.*s",
                       SPAN_FMT(result->rejected[0].address));
    }
    loop_stop(taken->world->rig.loop);
}

static void on_message_taken(struct submission *submission)
{
    struct taken *taken = submission->ctx;
    taken->messages_taken++;
    assert_int_equal(taken->results, 0);
}

/* `to` is a list with commas. */
static void prepare(struct world *world, struct taken *taken, const char *to, const char *message)
{
    memset(taken, 0, sizeof *taken);
    taken->world = world;
    struct submission *submission = &taken->submission;
    arena_init(&submission->arena, (size_t)16 << 20);
    *submission = (struct submission){
        .arena = submission->arena,
        .client = &any_client,
        .reverse_path = SPAN_LIT("boss@contoso.com"),
        .recipients = taken->recipients,
        .message = span_of(message),
        .peer_address = "192.0.2.7",
        .helo = SPAN_LIT("printer.contoso.com"),
        .with = "ESMTPA",
        .tls_version = "",
        .on_message_taken = on_message_taken,
        .on_result = on_result,
        .ctx = taken,
    };
    struct span rest = span_of(to);
    while (rest.len > 0) {
        assert_true(submission->recipient_count < RECIPIENTS_MAX);
        taken->recipients[submission->recipient_count++] = span_cut(&rest, ',');
    }
}

static void submit(struct world *world, struct taken *taken)
{
    taken->inside = true;
    intake_submit(world->intake, &taken->submission);
    taken->inside = false;
}

static void finish(struct world *world, struct taken *taken)
{
    RIG_WAIT(&world->rig, taken->results > 0);
    assert_int_equal(taken->results, 1);
    assert_int_equal(taken->messages_taken, 1);
    arena_release(&taken->submission.arena);
}

static enum intake_verdict take(struct world *world, struct taken *taken)
{
    submit(world, taken);
    finish(world, taken);
    return taken->verdict;
}

/* The stored message of the only batch in (lane, backend); the caller frees the lease. */
static struct queue_lease *stored(struct world *world, const char *lane, const char *backend)
{
    static struct claimed claimed;
    claim_wait(&world->handle, lane, backend, 10, &claimed);
    assert_int_equal(claimed.count, 1);
    return claimed.leases[0];
}

static bool has(const struct queue_lease *lease, const char *text)
{
    return span_search(lease->message.body, span_of(text)) < lease->message.body.len;
}

static void test_accepts_and_completes(void **state)
{
    struct world *world = *state;
    struct taken taken;
    /* Nothing of what a message should have; no empty line behind the header either. */
    prepare(world, &taken, "Anna@CONTOSO.com,anna@contoso.com", "Subject: Caf\xc3\xa9\r\n");
    assert_int_equal(take(world, &taken), INTAKE_ACCEPTED);
    assert_int_equal(taken.accepted, 1);
    assert_int_equal(taken.batches, 1);
    struct queue_lease *lease = stored(world, "normal", "hve");
    assert_true(span_eq(lease->message.id, span_of(taken.id)));
    assert_true(span_starts(lease->message.body,
                            SPAN_LIT("Received: from printer.contoso.com ([192.0.2.7])\r\n"
                                     "\tby gw.contoso.com (heave) with ESMTPA id ")));
    assert_true(has(lease, "\r\nFrom: <boss@contoso.com>\r\n"));
    assert_true(has(lease, "\r\nDate: "));
    assert_true(has(lease, "\r\nMessage-ID: <"));
    assert_true(span_ends(lease->message.body, SPAN_LIT("Subject: Caf\xc3\xa9\r\n\r\n")));
    assert_true(lease->message.message_id.len > 2);
    assert_true(has(lease, taken.id));
    assert_int_equal(lease->message.flags, MESSAGE_8BIT | MESSAGE_BY_HOST);
    assert_true(span_eq(lease->batch.recipients[0].address, SPAN_LIT("Anna@contoso.com")));
    assert_in_range(lease->message.expires_ms - lease->message.accepted_ms, 1999000, 2000000);
    queue_lease_free(&lease);
}

static void test_leaves_a_complete_message_as_it_is(void **state)
{
    struct world *world = *state;
    struct taken taken;
    prepare(world, &taken, "anna@contoso.com", PLAIN);
    taken.submission.client = &login_client;
    taken.submission.helo = SPAN_LIT("evil (\r\n"); /* is not written into the header */
    taken.submission.tls_version = "TLSv1.3";
    assert_int_equal(take(world, &taken), INTAKE_ACCEPTED);
    struct queue_lease *lease = stored(world, "normal", "hve");
    assert_true(span_ends(lease->message.body, SPAN_LIT(PLAIN)));
    size_t added = lease->message.body.len - strlen(PLAIN);
    struct span trace = span_make(lease->message.body.data, added);
    assert_true(span_starts(trace, SPAN_LIT("Received: from unknown ([192.0.2.7])\r\n")));
    assert_true(span_search(trace, SPAN_LIT("\r\n\t(TLSv1.3);")) < added);
    assert_true(span_search(trace, SPAN_LIT("Date:")) == added);
    assert_true(span_eq(lease->message.message_id, SPAN_LIT("<1@contoso.com>")));
    assert_true(span_eq(lease->message.subject, SPAN_LIT("Hello")));
    assert_true(span_eq(lease->message.header_from, SPAN_LIT("boss@contoso.com")));
    assert_int_equal(lease->message.flags, 0);
    queue_lease_free(&lease);
}

static void test_takes_private_fields_out(void **state)
{
    struct world *world = *state;
    struct taken taken;
    prepare(world, &taken, "anna@contoso.com",
            "bcc: secret@contoso.com,\r\n more@contoso.com\r\nX-Heave-Tag: a\r\n" HEADER
            "X-HEAVE-Lane: alert\r\nResent-Bcc: hidden@contoso.com\r\n\r\nBcc: text stays\r\n");
    assert_int_equal(take(world, &taken), INTAKE_ACCEPTED);
    struct queue_lease *lease = stored(world, "alert", "hve");
    assert_false(has(lease, "secret@"));
    assert_false(has(lease, "more@"));
    assert_false(has(lease, "hidden@"));
    assert_false(has(lease, "X-H"));
    assert_true(has(lease, HEADER "\r\nBcc: text stays\r\n"));
    queue_lease_free(&lease);
}

static void test_splits_by_route_and_size(void **state)
{
    struct world *world = *state;
    struct taken taken;
    char to[2000] = "x@example.net";
    for (int i = 0; i < 51; i++) {
        size_t len = strlen(to);
        (void)snprintf(to + len, sizeof to - len, ",r%d@contoso.com", i);
    }
    prepare(world, &taken, to, PLAIN);
    assert_int_equal(take(world, &taken), INTAKE_ACCEPTED);
    assert_int_equal(taken.accepted, 52);
    assert_int_equal(taken.batches, 3);
    static struct claimed claimed;
    claim_wait(&world->handle, "normal", "hve", 10, &claimed);
    assert_int_equal(claimed.count, 2);
    size_t first = claimed.leases[0]->batch.recipient_count;
    assert_in_range(first, 1, 50);
    assert_int_equal(first + claimed.leases[1]->batch.recipient_count, 51);
    queue_lease_free(&claimed.leases[0]);
    queue_lease_free(&claimed.leases[1]);
    struct queue_lease *lease = stored(world, "normal", "acs");
    assert_int_equal(lease->batch.recipient_count, 1);
    queue_lease_free(&lease);
}

static void test_lanes(void **state)
{
    struct world *world = *state;
    struct taken taken;
    prepare(world, &taken, "anna@contoso.com", "X-Heave-Lane: alert\r\n" PLAIN);
    taken.submission.client = &boss_client; /* may not choose: the field is removed, no more */
    assert_int_equal(take(world, &taken), INTAKE_ACCEPTED);
    struct queue_lease *lease = stored(world, "bulk", "hve");
    queue_lease_free(&lease);
    prepare(world, &taken, "anna@contoso.com", PLAIN);
    taken.submission.client = &boss_client;
    taken.submission.lane = SPAN_LIT("alert");
    assert_int_equal(take(world, &taken), INTAKE_BAD_MESSAGE);
    prepare(world, &taken, "anna@contoso.com", PLAIN);
    taken.submission.lane = SPAN_LIT("nowhere");
    assert_int_equal(take(world, &taken), INTAKE_BAD_MESSAGE);
    assert_string_equal(taken.detail, "There is no lane of that name.");
    prepare(world, &taken, "anna@contoso.com", PLAIN);
    taken.submission.lane = SPAN_LIT("alert");
    taken.submission.expires_in_ms = 5000;
    assert_int_equal(take(world, &taken), INTAKE_ACCEPTED);
    lease = stored(world, "alert", "hve");
    assert_in_range(lease->message.expires_ms - lease->message.accepted_ms, 4000, 5000);
    queue_lease_free(&lease);
}

static void test_send_at(void **state)
{
    struct world *world = *state;
    struct taken taken;
    static struct shown shown;
    char message[400];
    char at[CLOCK_TEXT_MAX];
    clock_rfc3339(clock_wall_ms() + 3600000, at);
    (void)snprintf(message, sizeof message, "X-Heave-Send-At: %s\r\n" PLAIN, at);
    prepare(world, &taken, "anna@contoso.com", message);
    assert_int_equal(take(world, &taken), INTAKE_ACCEPTED);
    assert_int_equal(show_wait(&world->handle, taken.id, &shown), 0);
    assert_int_equal(shown.batches[0].state, BATCH_DELAYED);
    assert_true(shown.message.expires_ms > clock_wall_ms() + 3600000 + 1900000);
    prepare(world, &taken, "anna@contoso.com", "X-Heave-Send-At: tomorrow\r\n" PLAIN);
    assert_int_equal(take(world, &taken), INTAKE_BAD_MESSAGE);
    /* Further ahead than the stored form of a due time reaches. */
    prepare(world, &taken, "anna@contoso.com", "X-Heave-Send-At: 9999-12-31T23:59:59Z\r\n" PLAIN);
    assert_int_equal(take(world, &taken), INTAKE_BAD_MESSAGE);
}

static struct span answer_of(struct submission *submission, const struct intake_result *result)
{
    char text[100];
    (void)snprintf(text, sizeof text, "answer %zu", result->accepted);
    return arena_dup(&submission->arena, span_of(text));
}

static void test_idempotency_key_of_the_caller(void **state)
{
    struct world *world = *state;
    struct taken taken;
    char id[MESSAGE_ID_MAX + 1];
    prepare(world, &taken, "anna@contoso.com", PLAIN);
    taken.submission.idempotency_key = SPAN_LIT("k");
    taken.submission.make_answer = answer_of;
    assert_int_equal(take(world, &taken), INTAKE_ACCEPTED);
    memcpy(id, taken.id, sizeof id);
    prepare(world, &taken, "anna@contoso.com", PLAIN);
    taken.submission.idempotency_key = SPAN_LIT("k");
    assert_int_equal(take(world, &taken), INTAKE_REPLAYED);
    assert_string_equal(taken.id, id);
    assert_string_equal(taken.answer, "answer 1");
    prepare(world, &taken, "anna@contoso.com", PLAIN "More.\r\n");
    taken.submission.idempotency_key = SPAN_LIT("k");
    assert_int_equal(take(world, &taken), INTAKE_CONFLICT);
    prepare(world, &taken, "anna@contoso.com", PLAIN); /* of somebody else */
    taken.submission.client = &boss_client;
    taken.submission.idempotency_key = SPAN_LIT("k");
    assert_int_equal(take(world, &taken), INTAKE_ACCEPTED);
    char long_key[257];
    memset(long_key, 'k', sizeof long_key);
    prepare(world, &taken, "anna@contoso.com", PLAIN);
    taken.submission.idempotency_key = span_make(long_key, 256);
    assert_int_equal(take(world, &taken), INTAKE_BAD_MESSAGE);
}

/* Of two at once one is taken; the other one hears so, and later gets its answer. */
static void test_two_with_one_key(void **state)
{
    struct world *world = *state;
    struct taken first;
    struct taken second;
    prepare(world, &first, "anna@contoso.com", PLAIN);
    first.submission.idempotency_key = SPAN_LIT("race");
    prepare(world, &second, "anna@contoso.com", PLAIN);
    second.submission.idempotency_key = SPAN_LIT("race");
    submit(world, &first);
    submit(world, &second);
    assert_int_equal(first.messages_taken, 0); /* its bytes are needed until the key is reserved */
    finish(world, &second);
    finish(world, &first);
    assert_int_equal(first.verdict, INTAKE_ACCEPTED);
    assert_int_equal(second.verdict, INTAKE_RUNNING);
    prepare(world, &second, "anna@contoso.com", PLAIN);
    second.submission.idempotency_key = SPAN_LIT("race");
    assert_int_equal(take(world, &second), INTAKE_REPLAYED);
    assert_string_equal(second.id, first.id);
}

static void on_reserved(void *ctx, int status, const struct queue_key_found *found)
{
    struct world *world = ctx;
    assert_int_equal(status, 0);
    assert_int_equal(found->state, QUEUE_KEY_FRESH);
    world->reserved = true;
    loop_stop(world->rig.loop);
}

/* A gateway that died with the key reserved leaves it free after a while. */
static void test_owner_of_a_key_dies(void **state)
{
    struct world *world = *state;
    struct taken taken;
    struct queue_idempotency key = {
        .scope = SPAN_LIT("any"),
        .key = SPAN_LIT("orphan"),
        .fingerprint = SPAN_LIT("x"),
        .owner = SPAN_LIT("dead"),
    };
    assert_int_equal(queue_key_begin(world->handle.queue, &key, 700, on_reserved, world), 0);
    RIG_WAIT(&world->rig, world->reserved);
    size_t running = 0;
    enum intake_verdict verdict = INTAKE_RUNNING;
    int64_t end_ms = clock_mono_ms() + 20000;
    while (verdict == INTAKE_RUNNING && clock_mono_ms() < end_ms) {
        prepare(world, &taken, "anna@contoso.com", PLAIN);
        taken.submission.idempotency_key = SPAN_LIT("orphan");
        verdict = take(world, &taken);
        running += verdict == INTAKE_RUNNING ? 1 : 0;
    }
    assert_true(running > 0);
    assert_int_equal(verdict, INTAKE_ACCEPTED);
}

/* A relay hands on the same message in several transactions: none of its recipients is lost, and
 * none gets it twice when a transaction is repeated. */
static void test_idempotency_key_of_the_header(void **state)
{
    static const char message[] = "X-Heave-Idempotency-Key: run-7\r\n" PLAIN;
    struct world *world = *state;
    struct taken taken;
    prepare(world, &taken, "a@contoso.com,b@contoso.com", message);
    assert_int_equal(take(world, &taken), INTAKE_ACCEPTED);
    prepare(world, &taken, "c@contoso.com", message);
    assert_int_equal(take(world, &taken), INTAKE_ACCEPTED);
    prepare(world, &taken, "a@contoso.com,b@contoso.com", message);
    assert_int_equal(take(world, &taken), INTAKE_REPLAYED);
    prepare(world, &taken, "c@contoso.com", message);
    assert_int_equal(take(world, &taken), INTAKE_REPLAYED);
    prepare(world, &taken, "c@contoso.com", "X-Heave-Idempotency-Key: run-7\r\n" PLAIN "More.\r\n");
    assert_int_equal(take(world, &taken), INTAKE_CONFLICT);
    /* The bounds of the envelope count, not its letters run together. */
    prepare(world, &taken, "a@contoso.com", message);
    assert_int_equal(take(world, &taken), INTAKE_ACCEPTED);
}

static void test_senders(void **state)
{
    static const char *const forbidden[] = {
        "From: eve@contoso.com\r\n\r\n.\r\n",
        "From: boss@contoso.com, eve@contoso.com\r\n\r\n.\r\n",
        "From: boss@contoso.com\r\nFrom: eve@contoso.com\r\n\r\n.\r\n",
    };
    struct world *world = *state;
    struct taken taken;
    for (size_t i = 0; i < 3; i++) {
        prepare(world, &taken, "anna@contoso.com", forbidden[i]);
        taken.submission.client = &boss_client;
        assert_int_equal(take(world, &taken), INTAKE_SENDER_DENIED);
    }
    prepare(world, &taken, "anna@contoso.com", PLAIN);
    taken.submission.client = &boss_client;
    taken.submission.reverse_path = SPAN_LIT("eve@contoso.com");
    assert_int_equal(take(world, &taken), INTAKE_SENDER_DENIED);
}

static void test_loops_and_size(void **state)
{
    struct world *world = *state;
    struct taken taken;
    prepare(world, &taken, "anna@contoso.com",
            "Received: a\r\nReceived: b\r\nReceived: c\r\n" PLAIN);
    assert_int_equal(take(world, &taken), INTAKE_ACCEPTED);
    prepare(world, &taken, "anna@contoso.com",
            "Received: a\r\nReceived: b\r\nReceived: c\r\nreceived: d\r\n" PLAIN);
    assert_int_equal(take(world, &taken), INTAKE_BAD_MESSAGE);
    char *large = mem_alloc(intake_conf.max_message_bytes + 2);
    memset(large, 'x', intake_conf.max_message_bytes + 1);
    large[intake_conf.max_message_bytes + 1] = '\0';
    memcpy(large, PLAIN, strlen(PLAIN));
    prepare(world, &taken, "anna@contoso.com", large);
    assert_int_equal(take(world, &taken), INTAKE_TOO_LARGE);
    large[intake_conf.max_message_bytes] = '\0'; /* as large as is allowed, and trace on top */
    prepare(world, &taken, "anna@contoso.com", large);
    assert_int_equal(take(world, &taken), INTAKE_ACCEPTED);
    mem_free(large);
}

static void test_all_or_nothing(void **state)
{
    struct world *world = *state;
    struct taken taken;
    static const char to[] = "anna@contoso.com,not-an-address,x@example.net";
    prepare(world, &taken, to, PLAIN);
    assert_int_equal(take(world, &taken), INTAKE_NO_RECIPIENT);
    assert_string_equal(taken.first_rejected, "not-an-address");
    prepare(world, &taken, to, PLAIN);
    taken.submission.client = &boss_client; /* internal recipients only */
    taken.submission.partial_ok = true;
    assert_int_equal(take(world, &taken), INTAKE_ACCEPTED);
    assert_int_equal(taken.accepted, 1);
    assert_int_equal(taken.rejected, 2);
    prepare(world, &taken, "x@example.net", PLAIN);
    taken.submission.lane = SPAN_LIT("alert"); /* no route for it there */
    taken.submission.partial_ok = true;
    assert_int_equal(take(world, &taken), INTAKE_NO_RECIPIENT);
    assert_int_equal(taken.rejected, 1);
    prepare(world, &taken, "", PLAIN);
    assert_int_equal(take(world, &taken), INTAKE_NO_RECIPIENT);
}

static void test_recipient_check(void **state)
{
    struct world *world = *state;
    struct span inside = SPAN_LIT("anna@contoso.com");
    struct span outside = SPAN_LIT("x@example.net");
    assert_null(intake_recipient_check(world->intake, &boss_client, inside, false));
    assert_non_null(intake_recipient_check(world->intake, &boss_client, outside, false));
    assert_null(intake_recipient_check(world->intake, &any_client, outside, false));
    assert_non_null(intake_recipient_check(world->intake, &any_client, SPAN_LIT("nobody"), false));
}

static enum intake_verdict ready(struct world *world)
{
    const char *why = NULL;
    enum intake_verdict verdict = intake_ready(world->intake, &boss_client, &why);
    assert_int_equal(why != NULL, verdict != INTAKE_ACCEPTED);
    return verdict;
}

static void test_redis_away(void **state)
{
    struct world *world = *state;
    struct taken before;
    struct taken after;
    assert_int_equal(ready(world), INTAKE_ACCEPTED);
    /* One is on its way when Redis goes, one comes after. */
    prepare(world, &before, "anna@contoso.com", PLAIN);
    rig_stop_server(&world->rig);
    submit(world, &before);
    RIG_WAIT(&world->rig, !world->handle.up);
    assert_int_equal(ready(world), INTAKE_UNAVAILABLE);
    prepare(world, &after, "anna@contoso.com", PLAIN);
    assert_int_equal(take(world, &after), INTAKE_UNAVAILABLE);
    finish(world, &before);
    assert_int_equal(before.verdict, INTAKE_UNAVAILABLE);
    rig_start_server(&world->rig);
    RIG_WAIT(&world->rig, world->handle.up);
    prepare(world, &after, "anna@contoso.com", PLAIN);
    assert_int_equal(take(world, &after), INTAKE_ACCEPTED);
}

static void test_full(void **state)
{
    struct world *world = *state;
    struct taken taken;
    int accepted = 0;
    enum intake_verdict verdict = INTAKE_ACCEPTED;
    for (int i = 0; i < 10 && verdict == INTAKE_ACCEPTED; i++) {
        prepare(world, &taken, "anna@contoso.com", PLAIN);
        verdict = take(world, &taken);
        accepted += verdict == INTAKE_ACCEPTED ? 1 : 0;
    }
    assert_int_equal(verdict, INTAKE_FULL);
    assert_in_range(accepted, 1, 4);
}

/* Many in one turn: each gets its own answer. */
static void test_many_at_once(void **state)
{
    enum { MANY = 200 };
    struct world *world = *state;
    static struct taken taken[MANY];
    for (size_t i = 0; i < MANY; i++) {
        prepare(world, &taken[i], "anna@contoso.com", PLAIN);
        submit(world, &taken[i]);
    }
    assert_int_equal(intake_pending(world->intake), MANY);
    for (size_t i = 0; i < MANY; i++) {
        finish(world, &taken[i]);
        assert_int_equal(taken[i].verdict, INTAKE_ACCEPTED);
        assert_true(i == 0 || strcmp(taken[i].id, taken[i - 1].id) != 0);
    }
    static struct claimed claimed;
    claim_wait(&world->handle, "normal", "hve", 1000, &claimed);
    assert_int_equal(claimed.count, MANY);
    for (size_t i = 0; i < claimed.count; i++) {
        queue_lease_free(&claimed.leases[i]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_accepts_and_completes, setup, teardown),
        cmocka_unit_test_setup_teardown(test_leaves_a_complete_message_as_it_is, setup, teardown),
        cmocka_unit_test_setup_teardown(test_takes_private_fields_out, setup, teardown),
        cmocka_unit_test_setup_teardown(test_splits_by_route_and_size, setup, teardown),
        cmocka_unit_test_setup_teardown(test_lanes, setup, teardown),
        cmocka_unit_test_setup_teardown(test_send_at, setup, teardown),
        cmocka_unit_test_setup_teardown(test_idempotency_key_of_the_caller, setup, teardown),
        cmocka_unit_test_setup_teardown(test_two_with_one_key, setup, teardown),
        cmocka_unit_test_setup_teardown(test_owner_of_a_key_dies, setup, teardown),
        cmocka_unit_test_setup_teardown(test_idempotency_key_of_the_header, setup, teardown),
        cmocka_unit_test_setup_teardown(test_senders, setup, teardown),
        cmocka_unit_test_setup_teardown(test_loops_and_size, setup, teardown),
        cmocka_unit_test_setup_teardown(test_all_or_nothing, setup, teardown),
        cmocka_unit_test_setup_teardown(test_recipient_check, setup, teardown),
        cmocka_unit_test_setup_teardown(test_redis_away, setup, teardown),
        cmocka_unit_test_setup_teardown(test_full, setup_small, teardown),
        cmocka_unit_test_setup_teardown(test_many_at_once, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
