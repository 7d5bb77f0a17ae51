#include "gateway/events.h"

#include "gateway/base/clock.h"
#include "gateway/base/codec.h"
#include "gateway/base/log.h"

#include <stdatomic.h>

/* The metric table of the process: one row a metric. tests/check compares it with the README. */
enum metric_row {
    ROW_SESSIONS_TOTAL,
    ROW_SESSIONS_OPEN,
    ROW_SESSION_SECONDS,
    ROW_AUTH_TOTAL,
    ROW_MESSAGES_TOTAL,
    ROW_MESSAGE_BYTES_TOTAL,
    ROW_RECIPIENTS_ACCEPTED_TOTAL,
    ROW_ACCEPT_SECONDS,
    ROW_ATTEMPTS_TOTAL,
    ROW_ATTEMPT_SECONDS,
    ROW_RECIPIENTS_FINISHED_TOTAL,
    ROW_DELIVERY_AGE_SECONDS,
    ROW_THROTTLED_TOTAL,
    ROW_BACKEND_HEALTHY,
    ROW_REDIS_UP,
    ROW_REDIS_CHANGES_TOTAL,
    ROW_REDIS_WARNINGS_TOTAL,
    ROW_QUEUE_DURABILITY,
    ROW_SWEEP_TOTAL,
    ROW_WORK_TOTAL,
    ROW_QUEUE_BATCHES,
    ROW_QUEUE_OLDEST_SECONDS,
    ROW_QUEUE_BYTES,
    ROW_QUEUE_MESSAGES_OPEN,
    ROW_QUEUE_DEAD_LETTERS,
    ROW_QUEUE_DEAD_LETTER_BYTES,
    ROW_QUEUE_HISTORY_BYTES,
    ROW_ADMISSION_OPEN,
    ROW_ADMISSION_REFUSED_TOTAL,
    ROW_CONFIG_RELOADS_TOTAL,
    ROW_CONFIG_LAST_RELOAD_SUCCESSFUL,
    ROW_COUNT,
};

static const double accept_buckets[] = {0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025,
                                        0.05,   0.1,   0.25,   0.5,   1,    5};
static const double attempt_buckets[] = {0.001, 0.005, 0.01, 0.05, 0.1, 0.25,
                                         0.5,   1,     5,    15,   60,  300};
static const double age_buckets[] = {0.01, 0.05, 0.1, 0.5, 1, 5, 15, 60, 300, 1800, 7200, 86400};
static const double session_buckets[] = {0.01, 0.1, 1, 10, 60, 300, 1800, 7200};

#define BUCKETS(array) .buckets = (array), .bucket_count = sizeof(array) / sizeof((array)[0])

static const struct metric_def metric_table[ROW_COUNT] = {
    [ROW_SESSIONS_TOTAL] = {.name = "heave_sessions_total",
                            .kind = METRIC_COUNTER,
                            .help = "Sessions that ended, by protocol and how they ended.",
                            .labels = {"protocol", "end"}},
    [ROW_SESSIONS_OPEN] = {.name = "heave_sessions_open",
                           .kind = METRIC_GAUGE,
                           .help = "Sessions open now, by protocol.",
                           .labels = {"protocol"}},
    [ROW_SESSION_SECONDS] = {.name = "heave_session_seconds",
                             .kind = METRIC_HISTOGRAM,
                             .help = "How long sessions lasted, in seconds.",
                             .labels = {"protocol"},
                             BUCKETS(session_buckets)},
    [ROW_AUTH_TOTAL] = {.name = "heave_auth_total",
                        .kind = METRIC_COUNTER,
                        .help = "Authentications tried, by protocol and result.",
                        .labels = {"protocol", "result"}},
    [ROW_MESSAGES_TOTAL] = {.name = "heave_messages_total",
                            .kind = METRIC_COUNTER,
                            .help = "Messages handed in, by client, lane and intake's verdict.",
                            .labels = {"client", "lane", "verdict"}},
    [ROW_MESSAGE_BYTES_TOTAL] = {.name = "heave_message_bytes_total",
                                 .kind = METRIC_COUNTER,
                                 .help = "Bytes of accepted messages, by client.",
                                 .labels = {"client"}},
    [ROW_RECIPIENTS_ACCEPTED_TOTAL] =
        {.name = "heave_recipients_accepted_total",
         .kind = METRIC_COUNTER,
         .help = "Recipients accepted after de-duplication, by client and lane.",
         .labels = {"client", "lane"}},
    [ROW_ACCEPT_SECONDS] = {.name = "heave_accept_seconds",
                            .kind = METRIC_HISTOGRAM,
                            .help = "From the complete message to durable in Redis, in seconds.",
                            BUCKETS(accept_buckets)},
    [ROW_ATTEMPTS_TOTAL] = {.name = "heave_attempts_total",
                            .kind = METRIC_COUNTER,
                            .help = "Batches tried, by backend, lane and verdict.",
                            .labels = {"backend", "lane", "verdict"}},
    [ROW_ATTEMPT_SECONDS] = {.name = "heave_attempt_seconds",
                             .kind = METRIC_HISTOGRAM,
                             .help = "From claim to verdict, in seconds, by backend.",
                             .labels = {"backend"},
                             BUCKETS(attempt_buckets)},
    [ROW_RECIPIENTS_FINISHED_TOTAL] =
        {.name = "heave_recipients_finished_total",
         .kind = METRIC_COUNTER,
         .help = "Recipients in a terminal state, by backend, lane and state.",
         .labels = {"backend", "lane", "state"}},
    [ROW_DELIVERY_AGE_SECONDS] = {.name = "heave_delivery_age_seconds",
                                  .kind = METRIC_HISTOGRAM,
                                  .help = "From acceptance to delivery, in seconds, by lane.",
                                  .labels = {"lane"},
                                  BUCKETS(age_buckets)},
    [ROW_THROTTLED_TOTAL] = {.name = "heave_throttled_total",
                             .kind = METRIC_COUNTER,
                             .help = "Answers that closed a backend or account for a time.",
                             .labels = {"backend", "account"}},
    [ROW_BACKEND_HEALTHY] =
        {.name = "heave_backend_healthy",
         .kind = METRIC_GAUGE,
         .help = "1 while the account can be used, 0 while it is blocked or misconfigured.",
         .labels = {"backend", "account"}},
    [ROW_REDIS_UP] = {.name = "heave_redis_up",
                      .kind = METRIC_GAUGE,
                      .help = "Connections to Redis that are up and checked."},
    [ROW_REDIS_CHANGES_TOTAL] = {.name = "heave_redis_changes_total",
                                 .kind = METRIC_COUNTER,
                                 .help = "Times a connection to Redis came up or went down.",
                                 .labels = {"state"}},
    [ROW_REDIS_WARNINGS_TOTAL] =
        {.name = "heave_redis_warnings_total",
         .kind = METRIC_COUNTER,
         .help = "Log lines about a Redis that refuses commands, is slow or partly away."},
    [ROW_QUEUE_DURABILITY] = {.name = "heave_queue_durability",
                              .kind = METRIC_GAUGE,
                              .help = "1 for the level of queue.durability that is promised.",
                              .labels = {"level"}},
    [ROW_SWEEP_TOTAL] = {.name = "heave_sweep_total",
                         .kind = METRIC_COUNTER,
                         .help = "Batches the sweeper moved, by reason.",
                         .labels = {"reason"}},
    [ROW_WORK_TOTAL] = {.name = "heave_work_total",
                        .kind = METRIC_COUNTER,
                        .help = "Batches that operators changed, by verb.",
                        .labels = {"verb"}},
    [ROW_QUEUE_BATCHES] = {.name = "heave_queue_batches",
                           .kind = METRIC_GAUGE,
                           .help = "Batches in the queue, by lane, backend and state.",
                           .labels = {"lane", "backend", "state"}},
    [ROW_QUEUE_OLDEST_SECONDS] =
        {.name = "heave_queue_oldest_seconds",
         .kind = METRIC_GAUGE,
         .help =
             "Seconds since the oldest batch was accepted; of held ones since the first was held; of "
             "delayed ones how late the next is.",
         .labels = {"lane", "backend", "state"}},
    [ROW_QUEUE_BYTES] = {.name = "heave_queue_bytes",
                         .kind = METRIC_GAUGE,
                         .help = "Bytes of waiting messages, as queue.max_bytes counts them."},
    [ROW_QUEUE_MESSAGES_OPEN] =
        {.name = "heave_queue_messages_open",
         .kind = METRIC_GAUGE,
         .help = "Messages with at least one recipient not in a terminal state."},
    [ROW_QUEUE_DEAD_LETTERS] =
        {.name = "heave_queue_dead_letters",
         .kind = METRIC_GAUGE,
         .help = "Messages with recipients that failed, expired or are unknown; can be replayed."},
    [ROW_QUEUE_DEAD_LETTER_BYTES] =
        {.name = "heave_queue_dead_letter_bytes",
         .kind = METRIC_GAUGE,
         .help = "Bytes of finished ones of those, as queue.dead_letter_bytes counts them."},
    [ROW_QUEUE_HISTORY_BYTES] =
        {.name = "heave_queue_history_bytes",
         .kind = METRIC_GAUGE,
         .help = "Bytes of the status of finished batches, as queue.history_bytes counts them."},
    [ROW_ADMISSION_OPEN] = {.name = "heave_admission_open",
                            .kind = METRIC_GAUGE,
                            .help = "1 while new messages of the lane are accepted, 0 while they "
                                    "are put off.",
                            .labels = {"lane"}},
    [ROW_ADMISSION_REFUSED_TOTAL] =
        {.name = "heave_admission_refused_total",
         .kind = METRIC_COUNTER,
         .help = "Messages and peers put off because the queue is full, by lane and reason.",
         .labels = {"lane", "reason"}},
    [ROW_CONFIG_RELOADS_TOTAL] = {.name = "heave_config_reloads_total",
                                  .kind = METRIC_COUNTER,
                                  .help = "Configuration reloads, by result.",
                                  .labels = {"result"}},
    [ROW_CONFIG_LAST_RELOAD_SUCCESSFUL] = {.name = "heave_config_last_reload_successful",
                                           .kind = METRIC_GAUGE,
                                           .help =
                                               "1 when the last reload was taken, 0 when the old "
                                               "configuration was kept."},
};

enum { WARNED_ROWS = 64 };

struct events {
    struct metrics *metrics;
    struct metric *accept_seconds;
    struct metric *redis_up;
    atomic_int redis_connections;
    int redis_expected;
    _Atomic uint64_t warned[WARNED_ROWS]; /* hashes of Redis' warnings, with their minute */
};

struct events *events_new(void)
{
    struct events *events = mem_zero(sizeof *events);
    events->metrics = metrics_new(metric_table, ROW_COUNT);
    events->accept_seconds = metrics_get(events->metrics, ROW_ACCEPT_SECONDS, NULL);
    events->redis_up = metrics_get(events->metrics, ROW_REDIS_UP, NULL);
    metric_set(metrics_get(events->metrics, ROW_CONFIG_LAST_RELOAD_SUCCESSFUL, NULL), 1);
    return events;
}

void events_free(struct events **events)
{
    if (*events == NULL) {
        return;
    }
    metrics_free(&(*events)->metrics);
    mem_free(*events);
    *events = NULL;
}

struct metrics *events_metrics(struct events *events)
{
    return events->metrics;
}

const struct metric_def *events_metric_table(size_t *out_count)
{
    *out_count = ROW_COUNT;
    return metric_table;
}

/* A label value as a NUL-terminated string; cut to what label values of ours need. */
struct label {
    char text[64];
};

static const char *label_of(struct span value, struct label *room)
{
    size_t len = value.len < sizeof room->text - 1 ? value.len : sizeof room->text - 1;
    memcpy(room->text, value.data != NULL ? value.data : "", len);
    room->text[len] = '\0';
    return room->text;
}

static struct metric *series(struct events *events, enum metric_row row, const char *a,
                             const char *b, const char *c)
{
    const char *values[METRIC_LABELS_MAX] = {a, b, c, NULL};
    return metrics_get(events->metrics, row, values);
}

void events_session_opened(struct events *events, const char *protocol)
{
    metric_add(series(events, ROW_SESSIONS_OPEN, protocol, NULL, NULL), 1);
}

void events_session(struct events *events, const struct event_session *session)
{
    metric_add(series(events, ROW_SESSIONS_OPEN, session->protocol, NULL, NULL), -1);
    metric_add(series(events, ROW_SESSIONS_TOTAL, session->protocol, session->end, NULL), 1);
    metric_observe(series(events, ROW_SESSION_SECONDS, session->protocol, NULL, NULL),
                   (double)session->duration_ms / 1000.0);
    log_event(LOG_INFO, "session", LOG_TEXT("protocol", session->protocol),
              LOG_TEXT("peer", session->peer), LOG_TEXT("client", session->client),
              LOG_SPAN("helo", session->helo), LOG_TEXT("tls", session->tls_version),
              LOG_TEXT("auth", session->auth), LOG_TEXT("end", session->end),
              LOG_INT("messages", session->messages), LOG_INT("refused", session->refused),
              LOG_INT("requests", session->requests), LOG_INT("bytes_in", session->bytes_in),
              LOG_INT("duration_ms", session->duration_ms));
}

void events_auth(struct events *events, const char *protocol, const char *peer, struct span user,
                 bool success)
{
    metric_add(series(events, ROW_AUTH_TOTAL, protocol, success ? "ok" : "failed", NULL), 1);
    char room[128];
    log_event(success ? LOG_DEBUG : LOG_WARN, "auth", LOG_TEXT("protocol", protocol),
              LOG_TEXT("peer", peer), LOG_SPAN("user", log_address(user, room, sizeof room)),
              LOG_TEXT("result", success ? "ok" : "failed"));
}

void events_message(struct events *events, const struct event_message *message)
{
    struct label lane;
    bool accepted = strcmp(message->verdict, "accepted") == 0;
    const char *lane_text = label_of(message->lane, &lane);
    metric_add(series(events, ROW_MESSAGES_TOTAL, message->client, lane_text, message->verdict), 1);
    if (accepted) {
        metric_add(series(events, ROW_MESSAGE_BYTES_TOTAL, message->client, NULL, NULL),
                   (int64_t)message->bytes);
        metric_add(series(events, ROW_RECIPIENTS_ACCEPTED_TOTAL, message->client, lane_text, NULL),
                   (int64_t)message->recipients);
        metric_observe(events->accept_seconds, (double)message->accept_us / 1e6);
    }
    bool known = strcmp(message->verdict, "replayed") == 0 ||
                 strcmp(message->verdict, "deduplicated") == 0 ||
                 strcmp(message->verdict, "collected") == 0;
    char room[128];
    log_event(accepted || known ? LOG_INFO : LOG_WARN, "message", LOG_SPAN("id", message->id),
              LOG_TEXT("verdict", message->verdict), LOG_TEXT("client", message->client),
              LOG_SPAN("lane", message->lane), LOG_TEXT("protocol", message->protocol),
              LOG_SPAN("from", log_address(message->reverse_path, room, sizeof room)),
              LOG_INT("bytes", message->bytes), LOG_INT("recipients", message->recipients),
              LOG_INT("batches", message->batches), LOG_INT("rejected", message->rejected),
              LOG_INT("accept_us", message->accept_us),
              LOG_TEXT("detail", message->detail != NULL ? message->detail : ""));
}

void events_attempt(struct events *events, const struct event_attempt *attempt)
{
    struct label lane;
    metric_add(series(events, ROW_ATTEMPTS_TOTAL, attempt->backend, label_of(attempt->lane, &lane),
                      attempt->verdict),
               1);
    metric_observe(series(events, ROW_ATTEMPT_SECONDS, attempt->backend, NULL, NULL),
                   (double)attempt->duration_us / 1e6);
    bool clean = attempt->delivered == attempt->recipients;
    log_event(clean ? LOG_INFO : LOG_WARN, "attempt", LOG_SPAN("id", attempt->id),
              LOG_INT("batch", attempt->batch), LOG_TEXT("verdict", attempt->verdict),
              LOG_TEXT("backend", attempt->backend), LOG_TEXT("account", attempt->account),
              LOG_SPAN("lane", attempt->lane), LOG_INT("attempt", attempt->attempt),
              LOG_INT("recipients", attempt->recipients), LOG_INT("delivered", attempt->delivered),
              LOG_INT("failed", attempt->failed), LOG_INT("deferred", attempt->deferred),
              LOG_INT("duration_us", attempt->duration_us), LOG_SPAN("reply", attempt->reply),
              LOG_TEXT("remedy", attempt->remedy != NULL ? attempt->remedy : ""),
              LOG_INT("next_attempt_ms", attempt->next_attempt_ms));
}

void events_outcome(struct events *events, const struct event_outcome *outcome)
{
    struct label lane;
    const char *lane_text = label_of(outcome->lane, &lane);
    const char *state = recipient_state_name(outcome->state);
    metric_add(series(events, ROW_RECIPIENTS_FINISHED_TOTAL, outcome->backend, lane_text, state),
               (int64_t)outcome->recipients);
    bool delivered = outcome->state == RECIPIENT_DELIVERED;
    if (delivered) {
        metric_observe(series(events, ROW_DELIVERY_AGE_SECONDS, lane_text, NULL, NULL),
                       (double)outcome->age_ms / 1000.0);
    }
    log_event(delivered ? LOG_INFO : LOG_WARN, "outcome", LOG_SPAN("id", outcome->id),
              LOG_INT("batch", outcome->batch), LOG_TEXT("state", state),
              LOG_TEXT("backend", outcome->backend), LOG_SPAN("lane", outcome->lane),
              LOG_INT("recipients", outcome->recipients), LOG_INT("age_ms", outcome->age_ms));
}

void events_redis(struct events *events, bool up, const char *why)
{
    int change = up ? 1 : -1;
    int connections = atomic_fetch_add_explicit(&events->redis_connections, change,
                                                memory_order_relaxed);
    metric_set(events->redis_up, connections + change);
    metric_add(series(events, ROW_REDIS_CHANGES_TOTAL, up ? "up" : "down", NULL, NULL), 1);
    log_event(up ? LOG_INFO : LOG_ERROR, "redis", LOG_TEXT("state", up ? "up" : "down"),
              LOG_TEXT("why", why != NULL ? why : ""));
}

void events_redis_refused(struct events *events, const char *why)
{
    (void)events;
    log_event(LOG_ERROR, "redis", LOG_TEXT("state", "down"),
              LOG_TEXT("why", why != NULL ? why : ""));
}

/* Each loop has its own connection and hears the same of the server: one of them says it. Two texts
 * that share a row at worst say theirs twice. */
static bool said_this_minute(struct events *events, const char *text)
{
    uint64_t minute = (uint64_t)(clock_mono_ms() / 60000);
    uint64_t mark = codec_fnv1a(span_of(text)) + minute;
    return atomic_exchange_explicit(&events->warned[mark % WARNED_ROWS], mark,
                                    memory_order_relaxed) == mark;
}

void events_redis_warning(struct events *events, const char *text)
{
    if (said_this_minute(events, text)) {
        return;
    }
    metric_add(series(events, ROW_REDIS_WARNINGS_TOTAL, NULL, NULL, NULL), 1);
    log_event(LOG_WARN, "redis", LOG_TEXT("warning", text));
}

void events_durability(struct events *events, const char *level)
{
    metric_set(series(events, ROW_QUEUE_DURABILITY, level, NULL, NULL), 1);
}

void events_expect_redis(struct events *events, int handles)
{
    events->redis_expected = handles;
}

bool events_redis_is_up(const struct events *events)
{
    int up = atomic_load_explicit(&events->redis_connections, memory_order_relaxed);
    return up >= events->redis_expected;
}

void events_sweep(struct events *events, const char *what, int64_t count)
{
    metric_add(series(events, ROW_SWEEP_TOTAL, what, NULL, NULL), count);
    static const char *const serious[] = {"poison", "orphan", "lost_record", "unreadable"};
    enum log_level level = LOG_INFO;
    for (size_t i = 0; i < sizeof(serious) / sizeof(serious[0]); i++) {
        level = strcmp(what, serious[i]) == 0 ? LOG_WARN : level;
    }
    log_event(level, "sweep", LOG_TEXT("reason", what), LOG_INT("batches", count));
}

void events_work(struct events *events, const char *verb, const char *who, int64_t messages,
                 int64_t batches, int64_t busy)
{
    metric_add(series(events, ROW_WORK_TOTAL, verb, NULL, NULL), batches);
    log_event(LOG_INFO, "work", LOG_TEXT("verb", verb), LOG_TEXT("by", who),
              LOG_INT("messages", messages), LOG_INT("batches", batches), LOG_INT("busy", busy));
}

void events_digest_held(struct events *events, struct span id, const char *client, const char *why)
{
    (void)events;
    log_event(LOG_WARN, "digest", LOG_SPAN("id", id), LOG_TEXT("client", client),
              LOG_TEXT("why", why));
}

void events_admission_lane(struct events *events, const char *lane)
{
    metric_set(series(events, ROW_ADMISSION_OPEN, lane, NULL, NULL), 1);
}

void events_admission(struct events *events, const char *lane, bool open, const char *reason)
{
    metric_set(series(events, ROW_ADMISSION_OPEN, lane, NULL, NULL), open ? 1 : 0);
    log_event(open ? LOG_INFO : LOG_WARN, "admission", LOG_TEXT("lane", lane),
              LOG_TEXT("state", open ? "open" : "refused"), LOG_TEXT("reason", reason));
}

void events_admission_refused(struct events *events, struct span lane, const char *reason)
{
    struct label label;
    metric_add(series(events, ROW_ADMISSION_REFUSED_TOTAL, label_of(lane, &label), reason, NULL),
               1);
}

void events_health(struct events *events, const char *backend, const char *account,
                   const char *what, const char *text, const char *remedy)
{
    bool healthy = strcmp(what, "ok") == 0;
    metric_set(series(events, ROW_BACKEND_HEALTHY, backend, account, NULL), healthy ? 1 : 0);
    log_event(healthy ? LOG_INFO : LOG_ERROR, "health", LOG_TEXT("backend", backend),
              LOG_TEXT("account", account), LOG_TEXT("state", what),
              LOG_TEXT("reply", text != NULL ? text : ""),
              LOG_TEXT("remedy", remedy != NULL ? remedy : ""));
}

void events_throttled(struct events *events, const char *backend, const char *account,
                      int64_t wait_ms, struct span reply)
{
    metric_add(series(events, ROW_THROTTLED_TOTAL, backend, account, NULL), 1);
    log_event(LOG_WARN, "throttled", LOG_TEXT("backend", backend), LOG_TEXT("account", account),
              LOG_INT("wait_ms", wait_ms), LOG_SPAN("reply", reply));
}

void events_depth(struct events *events, struct span lane, struct span backend, const char *state,
                  int64_t batches, int64_t oldest_age_ms)
{
    struct label lane_room;
    struct label backend_room;
    const char *lane_text = label_of(lane, &lane_room);
    const char *backend_text = label_of(backend, &backend_room);
    metric_set(series(events, ROW_QUEUE_BATCHES, lane_text, backend_text, state), batches);
    metric_set(series(events, ROW_QUEUE_OLDEST_SECONDS, lane_text, backend_text, state),
               oldest_age_ms / 1000);
}

void events_queue_bytes(struct events *events, int64_t bytes, int64_t messages_open)
{
    metric_set(series(events, ROW_QUEUE_BYTES, NULL, NULL, NULL), bytes);
    metric_set(series(events, ROW_QUEUE_MESSAGES_OPEN, NULL, NULL, NULL), messages_open);
}

void events_queue_ended(struct events *events, int64_t dead_letters, int64_t dead_bytes,
                        int64_t history_bytes)
{
    metric_set(series(events, ROW_QUEUE_DEAD_LETTERS, NULL, NULL, NULL), dead_letters);
    metric_set(series(events, ROW_QUEUE_DEAD_LETTER_BYTES, NULL, NULL, NULL), dead_bytes);
    metric_set(series(events, ROW_QUEUE_HISTORY_BYTES, NULL, NULL, NULL), history_bytes);
}

void events_config_reload(struct events *events, bool success)
{
    metric_add(series(events, ROW_CONFIG_RELOADS_TOTAL, success ? "ok" : "failed", NULL, NULL), 1);
    metric_set(series(events, ROW_CONFIG_LAST_RELOAD_SUCCESSFUL, NULL, NULL, NULL),
               success ? 1 : 0);
}
