#include "gateway/courier.h"

#include "gateway/base/clock.h"
#include "gateway/base/codec.h"
#include "gateway/base/failpoint.h"

#include <assert.h>

/* Invariants every path keeps:
 *  - a lease is either in a waiting list, in a flight, or was settled or released; exactly one of
 * them;
 *  - queue_start() succeeds before a backend may send, and no backend sends after it failed;
 *  - at most one claim is on its way;
 *  - while anything could be claimable, a poll timer, a claim, or a flight is pending, so that
 * nothing stalls. */

#define POLL_IDLE_MS 100
#define POLL_DOWN_MS 250
/* Batches claimed ahead of a backend's room, so that the next ones are there when a slot frees;
 * never more than were finished since the last claim. */
#define AHEAD_MAX 64
/* Nor more while so much waits already: large messages are claimed as they are sent. */
#define AHEAD_MAX_BYTES ((size_t)8 << 20)
/* A gate answer of the queue in wall time is re-asked at least this often. */
#define GATE_RECHECK_MS 1000
/* A backend that takes nothing is asked about expired batches this often, so many at a time. */
#define PROBE_EVERY_MS 5000
#define PROBE_BATCHES 64
/* What a backend would not take, or what only part of the quota was left for, is not tried again at
 * once. */
#define REFUSED_WAIT_MS 1000
#define PARTIAL_WAIT_MAX_MS 60000
/* Beyond the grace of a drain: time for the last settlements. */
#define DRAIN_SETTLE_MS 5000
#define MESSAGE_SCOPE_MAX 96

static_assert(COURIER_BACKENDS_MAX * COURIER_LANES_MAX <= QUEUE_WANTS_MAX,
              "one claim asks for everything");

struct waiting {
    struct queue_lease **leases; /* ring */
    size_t head, count, cap;
};

/* One (backend, lane). */
struct channel {
    struct waiting waiting;
    uint32_t asked;    /* in the claim on its way */
    uint32_t returned; /* by the last claim */
    bool full;         /* the last claim returned all that was asked */
};

struct station {
    struct courier *courier;
    const struct courier_backend_conf *conf;
    const struct backend_defaults *defaults;
    struct backend *backend;
    size_t index;
    struct channel channels[COURIER_LANES_MAX];
    size_t waiting_count;
    size_t waiting_bytes;  /* of their bodies */
    size_t finished;       /* since the last claim */
    int64_t gate_until_ms; /* loop time: closed by the queue's gate or the quota */
    int64_t probe_at_ms;   /* loop time */
    int64_t launched_ms;   /* loop time of the last delivery's begin */
    size_t recipients_max; /* of one delivery; a batch may have more */
    bool asking_quota;
    bool closing;
};

/* One delivery on its way. */
struct flight {
    struct courier *courier;
    struct station *station;
    size_t lane;
    struct queue_lease *lease;
    struct delivery delivery;
    struct span recipients[BATCH_RECIPIENTS_MAX];
    size_t map[BATCH_RECIPIENTS_MAX];
    int64_t begun_us;
    uint32_t attempt;   /* from 1 */
    bool start_refused; /* nothing was sent */
};

/* One want of the claim on its way. */
struct asked {
    struct station *station;
    struct channel *channel;
    bool expired_only;
};

struct courier {
    struct loop *loop;
    struct queue *queue;
    const struct courier_conf *conf;
    struct events *events;
    struct courier_pace *pace;
    struct station stations[COURIER_BACKENDS_MAX];
    struct loop_timer poll;
    struct loop_task pump;
    bool claiming;
    bool again; /* a hint came while a claim was on its way */
    bool draining;
    size_t flights;
    size_t settles;
    size_t open_backends;
    struct queue_want wants[COURIER_BACKENDS_MAX * COURIER_LANES_MAX];
    struct asked asked[COURIER_BACKENDS_MAX * COURIER_LANES_MAX]; /* by want */
    size_t want_count;
    struct loop_timer drain_timer;
    bool overdue;                  /* the drain waits no longer for Redis */
    void (*on_drained)(void *ctx); /* NULL once called */
    void *on_drained_ctx;
};

static void pump_later(struct courier *courier);
static void claim(struct courier *courier);

/* Waiting lists. */

static void waiting_push(struct waiting *w, struct queue_lease *lease)
{
    if (w->count == w->cap) {
        size_t cap = w->cap == 0 ? 32 : w->cap * 2;
        struct queue_lease **grown = mem_alloc(cap * sizeof(struct queue_lease *));
        for (size_t i = 0; i < w->count; i++) {
            grown[i] = w->leases[(w->head + i) % w->cap];
        }
        mem_free(w->leases);
        w->leases = grown;
        w->cap = cap;
        w->head = 0;
    }
    w->leases[(w->head + w->count) % w->cap] = lease;
    w->count++;
}

static struct queue_lease *waiting_pop(struct waiting *w)
{
    ASSERT(w->count > 0);
    struct queue_lease *lease = w->leases[w->head];
    w->head = (w->head + 1) % w->cap;
    w->count--;
    return lease;
}

/* The last one first: each goes to the front of its list. */
static void release_waiting(struct station *station)
{
    for (size_t l = 0; l < station->courier->conf->lane_count; l++) {
        struct waiting *w = &station->channels[l].waiting;
        while (w->count > 0) {
            w->count--;
            struct queue_lease *lease = w->leases[(w->head + w->count) % w->cap];
            queue_release(station->courier->queue, lease);
            queue_lease_free(&lease);
        }
    }
    station->waiting_count = 0;
    station->waiting_bytes = 0;
}

/* Gates. */

static int64_t station_closed_until(const struct station *station)
{
    int64_t shared = atomic_load_explicit(&station->courier->pace->closed_until_ms[station->index],
                                          memory_order_relaxed);
    return shared > station->gate_until_ms ? shared : station->gate_until_ms;
}

static bool station_is_open(const struct station *station)
{
    return !station->closing &&
           station_closed_until(station) <= loop_now_ms(station->courier->loop);
}

/* Closes it for this loop; a later time wins. */
static void close_locally(struct station *station, int64_t wait_ms)
{
    int64_t until_ms = loop_now_ms(station->courier->loop) + (wait_ms > 0 ? wait_ms : 1);
    station->gate_until_ms = until_ms > station->gate_until_ms ? until_ms : station->gate_until_ms;
}

/* Closes the backend for every loop of this process and every replica. */
static void close_gate(struct station *station, int64_t wait_ms, const char *reason)
{
    struct courier *courier = station->courier;
    _Atomic int64_t *shared = &courier->pace->closed_until_ms[station->index];
    int64_t until_ms = loop_now_ms(courier->loop) + wait_ms;
    int64_t current = atomic_load_explicit(shared, memory_order_relaxed);
    while (current < until_ms &&
           !atomic_compare_exchange_weak_explicit(shared, &current, until_ms, memory_order_relaxed,
                                                  memory_order_relaxed)) {
    }
    queue_gate_close(courier->queue, station->conf->backend->name, clock_wall_ms() + wait_ms,
                     reason);
    release_waiting(station);
}

/* Settling. */

static void drained_maybe(struct courier *courier);

static void on_settled(void *ctx, int status)
{
    struct courier *courier = ctx;
    courier->settles--;
    if (status != ERR_OK) {
        events_sweep(courier->events, status == ERR_STALE ? "late_settle" : "settle_failed", 1);
    }
    drained_maybe(courier);
}

static void report_outcome(struct station *station, const struct queue_lease *lease,
                           enum recipient_state state, size_t count)
{
    if (count == 0) {
        return;
    }
    events_outcome(station->courier->events,
                   &(struct event_outcome){
                       .id = lease->message.id,
                       .batch = lease->batch.number,
                       .lane = lease->batch.lane,
                       .backend = station->conf->backend->name,
                       .state = state,
                       .recipients = count,
                       .age_ms = clock_wall_ms() - lease->message.accepted_ms,
                   });
}

/* Writes the result and frees the lease. */
static void settle(struct station *station, struct queue_lease *lease,
                   const struct settle_result *result)
{
    struct courier *courier = station->courier;
    report_outcome(station, lease, RECIPIENT_DELIVERED, result->delivered);
    report_outcome(station, lease, RECIPIENT_FAILED, result->failed);
    report_outcome(station, lease, RECIPIENT_EXPIRED, result->expired);
    report_outcome(station, lease, RECIPIENT_UNKNOWN, result->unknown);
    courier->settles++;
    int status = queue_settle(courier->queue, lease, &result->settlement, on_settled, courier);
    if (status != ERR_OK) {
        on_settled(courier, status);
    }
    queue_lease_free(&lease);
}

/* Delivering. */

static int on_flight_start(struct delivery *delivery)
{
    struct flight *flight = delivery->ctx;
    int status = queue_start(flight->courier->queue, flight->lease);
    flight->start_refused = status != ERR_OK;
    return status;
}

static void report_attempt(const struct flight *flight, const struct settle_result *result,
                           const struct answer *worst, const char *account)
{
    const struct queue_lease *lease = flight->lease;
    const char *backend = flight->station->conf->backend->name;
    if (worst->verdict == VERDICT_THROTTLED) {
        events_throttled(flight->courier->events, backend, account, worst->wait_ms,
                         span_of(worst->text));
    }
    bool delayed = result->settlement.next == QUEUE_NEXT_DELAY;
    events_attempt(flight->courier->events,
                   &(struct event_attempt){
                       .id = lease->message.id,
                       .batch = lease->batch.number,
                       .lane = lease->batch.lane,
                       .backend = backend,
                       .account = account,
                       .verdict = result->mixed ? "mixed" : verdict_name(worst->verdict),
                       .recipients = flight->delivery.recipient_count,
                       .delivered = result->delivered,
                       .failed = result->failed,
                       .deferred = result->deferred,
                       .attempt = flight->attempt,
                       .reply = span_of(worst->text),
                       .remedy = worst->remedy,
                       .duration_us = clock_mono_us() - flight->begun_us,
                       .next_attempt_ms = delayed ? result->settlement.due_ms : 0,
                   });
}

static void settle_flight(struct flight *flight, const struct answer *answers, const char *account)
{
    struct station *station = flight->station;
    struct courier *courier = flight->courier;
    struct settle_input input = {
        .lane = &courier->conf->lanes[flight->lane],
        .asks_when_unknown = station->defaults->asks_when_unknown,
        .now_ms = clock_wall_ms(),
        .expires_ms = flight->lease->message.expires_ms,
        .answers = answers,
        .map = flight->map,
        .count = flight->delivery.recipient_count,
        .account = account,
    };
    codec_random(&input.jitter, sizeof input.jitter);
    struct settle_result result;
    settle_decide(&flight->lease->batch, &input, &result);
    const struct answer *worst = &answers[result.worst];
    report_attempt(flight, &result, worst, account);
    if (result.mixed) {
        FAILPOINT("settle-partial");
    }
    settle(station, flight->lease, &result);
    if (result.close_gate) {
        close_gate(station, result.gate_wait_ms, worst->text);
    }
}

static void on_flight_done(struct delivery *delivery, const struct answer *answers,
                           const char *account)
{
    struct flight *flight = delivery->ctx;
    struct station *station = flight->station;
    struct courier *courier = flight->courier;
    if (flight->start_refused) {
        /* Redis is away or the lease is over; the backend did nothing wrong and nobody was tried.
         */
        queue_release(courier->queue, flight->lease);
        queue_lease_free(&flight->lease);
    } else {
        settle_flight(flight, answers, account);
    }
    station->finished++;
    courier->flights--;
    mem_free(flight);
    pump_later(courier);
    drained_maybe(courier);
}

static struct flight *flight_new(struct station *station, size_t lane, struct queue_lease *lease)
{
    struct flight *flight = mem_zero(sizeof *flight);
    flight->courier = station->courier;
    flight->station = station;
    flight->lane = lane;
    flight->lease = lease;
    flight->begun_us = clock_mono_us();
    flight->attempt = lease->batch.attempts + 1;
    struct delivery *delivery = &flight->delivery;
    *delivery = (struct delivery){
        .message_id = lease->message.id,
        .batch_number = lease->batch.number,
        .epoch = lease->batch.epoch,
        .maybe_sent = (lease->batch.flags & BATCH_MAYBE_SENT) != 0,
        .reverse_path = lease->message.reverse_path,
        .recipients = flight->recipients,
        .body = lease->message.body,
        .needs_8bitmime = (lease->message.flags & MESSAGE_8BIT) != 0,
        .needs_smtputf8 = (lease->message.flags & MESSAGE_SMTPUTF8) != 0,
        .on_start = on_flight_start,
        .on_done = on_flight_done,
        .ctx = flight,
    };
    for (size_t i = 0;
         i < lease->batch.recipient_count && delivery->recipient_count < station->recipients_max;
         i++) {
        if (lease->batch.recipients[i].state == RECIPIENT_QUEUED) {
            flight->recipients[delivery->recipient_count] = lease->batch.recipients[i].address;
            flight->map[delivery->recipient_count] = i;
            delivery->recipient_count++;
        }
    }
    return flight;
}

/* Settles a claimed batch at once when it has expired or must not be tried again; true when it did.
 */
static bool settle_unsent(struct station *station, size_t lane, struct queue_lease *lease)
{
    struct courier *courier = station->courier;
    int64_t now_ms = clock_wall_ms();
    struct settle_result result;
    if (lease->was_started) {
        FAILPOINT("settle-recovered");
    }
    if (lease->was_started &&
        !settle_recovered(&lease->batch, &courier->conf->lanes[lane],
                          station->defaults->asks_when_unknown, now_ms, &result)) {
        settle(station, lease, &result);
        return true;
    }
    if (lease->message.expires_ms <= now_ms || batch_open_count(&lease->batch) == 0) {
        FAILPOINT("settle-expired");
        settle_expire(&lease->batch, now_ms, &result);
        settle(station, lease, &result);
        return true;
    }
    return false;
}

/* Sends one claimed batch. */
static void launch(struct station *station, size_t lane, struct queue_lease *lease)
{
    struct courier *courier = station->courier;
    if (settle_unsent(station, lane, lease)) {
        return;
    }
    FAILPOINT("courier-before-send");
    struct flight *flight = flight_new(station, lane, lease);
    station->launched_ms = loop_now_ms(courier->loop);
    courier->flights++;
    if (backend_deliver(station->backend, &flight->delivery) != ERR_OK) {
        /* Its room has gone since it was asked, or it does not want this batch: not again at once.
         */
        courier->flights--;
        close_locally(station, REFUSED_WAIT_MS);
        queue_release(courier->queue, lease);
        queue_lease_free(&lease);
        mem_free(flight);
    }
}

/* The next waiting batch in order of lanes; NULL when there is none. */
static struct queue_lease *next_waiting(struct station *station, size_t *out_lane)
{
    for (size_t l = 0; l < station->courier->conf->lane_count; l++) {
        if (station->channels[l].waiting.count > 0) {
            *out_lane = l;
            struct queue_lease *lease = waiting_pop(&station->channels[l].waiting);
            station->waiting_count--;
            station->waiting_bytes -= lease->message.body.len;
            return lease;
        }
    }
    return NULL;
}

/* Quota: one batch at a time asks for its units; what is not granted goes back to the queue. */

struct quota_ask {
    struct station *station;
    size_t lane;
    struct queue_lease *lease;
    bool recipients_asked;
};

static void ask_quota(struct quota_ask *ask);

/* How many units the batch needs of what is being asked. */
static uint64_t quota_wanted(const struct quota_ask *ask)
{
    size_t open = batch_open_count(&ask->lease->batch);
    size_t tried = open < ask->station->recipients_max ? open : ask->station->recipients_max;
    return ask->recipients_asked ? tried : 1;
}

/* Some units were left but not enough: the first sub-bucket of the shortest window brings more. */
static int64_t partial_wait(const struct courier_backend_conf *conf)
{
    int64_t wait_ms = PARTIAL_WAIT_MAX_MS;
    for (size_t i = 0; i < conf->recipient_window_count; i++) {
        int64_t step_ms = conf->recipient_windows[i].window_ms / 32;
        wait_ms = step_ms < wait_ms ? step_ms : wait_ms;
    }
    return wait_ms > REFUSED_WAIT_MS ? wait_ms : REFUSED_WAIT_MS;
}

static void quota_refused(struct quota_ask *ask, int64_t wait_ms)
{
    struct station *station = ask->station;
    close_locally(station, wait_ms);
    release_waiting(station);
    queue_release(station->courier->queue, ask->lease);
    queue_lease_free(&ask->lease);
    mem_free(ask);
    pump_later(station->courier);
}

static void on_quota(void *ctx, int status, uint64_t granted, int64_t wait_ms)
{
    struct quota_ask *ask = ctx;
    struct station *station = ask->station;
    const struct courier_backend_conf *conf = station->conf;
    if (status == ERR_OK && granted == quota_wanted(ask) && !station->closing) {
        if (!ask->recipients_asked && conf->recipient_window_count > 0) {
            ask->recipients_asked = true;
            ask_quota(ask);
            return;
        }
        station->asking_quota = false;
        launch(station, ask->lane, ask->lease);
        mem_free(ask);
        pump_later(station->courier);
        drained_maybe(station->courier);
        return;
    }
    station->asking_quota = false;
    char scope[MESSAGE_SCOPE_MAX];
    if (ask->recipients_asked && granted > 0) {
        (void)snprintf(scope, sizeof scope, "%s:recipients", conf->backend->name);
        limiter_return(station->courier->queue, scope, conf->recipient_windows,
                       conf->recipient_window_count, granted);
    }
    if (ask->recipients_asked && conf->message_window_count > 0) {
        (void)snprintf(scope, sizeof scope, "%s:messages", conf->backend->name);
        limiter_return(station->courier->queue, scope, conf->message_windows,
                       conf->message_window_count, 1);
    }
    if (status != ERR_OK) {
        wait_ms = POLL_DOWN_MS;
    } else if (granted > 0) {
        wait_ms = partial_wait(conf);
    }
    quota_refused(ask, wait_ms);
    drained_maybe(station->courier);
}

static void ask_quota(struct quota_ask *ask)
{
    const struct courier_backend_conf *conf = ask->station->conf;
    char scope[MESSAGE_SCOPE_MAX];
    (void)snprintf(scope, sizeof scope, "%s:%s", conf->backend->name,
                   ask->recipients_asked ? "recipients" : "messages");
    int status = limiter_take(
        ask->station->courier->queue, scope,
        ask->recipients_asked ? conf->recipient_windows : conf->message_windows,
        ask->recipients_asked ? conf->recipient_window_count : conf->message_window_count,
        quota_wanted(ask), on_quota, ask);
    if (status != ERR_OK) {
        ask->station->asking_quota = false;
        quota_refused(ask, POLL_DOWN_MS);
    }
}

static void start_quota(struct station *station, size_t lane, struct queue_lease *lease)
{
    struct quota_ask *ask = mem_zero(sizeof *ask);
    *ask = (struct quota_ask){
        .station = station,
        .lane = lane,
        .lease = lease,
        .recipients_asked = station->conf->message_window_count == 0,
    };
    station->asking_quota = true;
    ask_quota(ask);
}

static void pump_station(struct station *station)
{
    bool limited = station->conf->message_window_count + station->conf->recipient_window_count > 0;
    while (station->waiting_count > 0 && station_is_open(station) && !station->asking_quota &&
           queue_is_up(station->courier->queue) && backend_room(station->backend) > 0) {
        size_t lane = 0;
        struct queue_lease *lease = next_waiting(station, &lane);
        if (limited) {
            start_quota(station, lane, lease);
        } else {
            launch(station, lane, lease);
        }
    }
    if (station->waiting_count > 0 && !station_is_open(station)) {
        release_waiting(station);
    }
}

/* Claiming. */

static void add_want(struct station *station, size_t lane, size_t max, bool expired_only)
{
    struct courier *courier = station->courier;
    courier->wants[courier->want_count] = (struct queue_want){
        .lane = courier->conf->lanes[lane].name,
        .backend = station->conf->backend->name,
        .max_batches = (uint32_t)max,
        .expired_only = expired_only,
    };
    courier->asked[courier->want_count] = (struct asked){
        .station = station, .channel = &station->channels[lane], .expired_only = expired_only};
    station->channels[lane].asked = (uint32_t)max;
    courier->want_count++;
}

static void expire_waiting(struct station *station)
{
    for (size_t l = 0; l < station->courier->conf->lane_count; l++) {
        struct waiting *w = &station->channels[l].waiting;
        for (size_t left = w->count; left > 0; left--) {
            struct queue_lease *lease = waiting_pop(w);
            size_t bytes = lease->message.body.len;
            if (settle_unsent(station, l, lease)) {
                station->waiting_count--;
                station->waiting_bytes -= bytes;
            } else {
                waiting_push(w, lease);
            }
        }
    }
}

/* What expires while the backend takes nothing still comes to its end; what was claimed for it goes
 * back, where others may find it. */
static void plan_probe(struct station *station)
{
    struct courier *courier = station->courier;
    int64_t now_ms = loop_now_ms(courier->loop);
    if (station->closing || now_ms < station->probe_at_ms) {
        return;
    }
    station->probe_at_ms = now_ms + PROBE_EVERY_MS;
    expire_waiting(station);
    if (backend_room(station->backend) == 0 && now_ms - station->launched_ms >= PROBE_EVERY_MS) {
        release_waiting(station);
    }
    for (size_t l = 0; l < courier->conf->lane_count; l++) {
        add_want(station, l, PROBE_BATCHES, true);
    }
}

/* Shares what the station can take between the lanes: each its guaranteed part; parts of lanes that
 * had nothing last time are lent to those that had more than they asked for. */
static void plan_station(struct station *station)
{
    const struct courier_conf *conf = station->courier->conf;
    size_t ahead = station->finished < AHEAD_MAX ? station->finished : AHEAD_MAX;
    size_t can_take = backend_room(station->backend) + ahead;
    station->finished = 0;
    if (!station_is_open(station) || can_take <= station->waiting_count ||
        station->waiting_bytes >= AHEAD_MAX_BYTES) {
        plan_probe(station);
        return;
    }
    size_t free_slots = can_take - station->waiting_count;
    size_t lent = 0;
    size_t hungry = 0;
    for (size_t l = 0; l < conf->lane_count; l++) {
        size_t part = free_slots * conf->lanes[l].share_percent / 100;
        if (station->channels[l].full) {
            hungry++;
        } else if (station->channels[l].returned == 0) {
            lent += part;
        }
    }
    for (size_t l = 0; l < conf->lane_count; l++) {
        size_t part = free_slots * conf->lanes[l].share_percent / 100;
        part += station->channels[l].full ? lent / hungry : 0;
        add_want(station, l, part > 0 ? part : 1, false);
    }
}

static void take_lease(struct courier *courier, struct queue_lease *lease)
{
    for (size_t i = 0; i < courier->want_count; i++) {
        if (span_eq(span_of(courier->wants[i].backend), lease->batch.backend) &&
            span_eq(span_of(courier->wants[i].lane), lease->batch.lane)) {
            struct station *station = courier->asked[i].station;
            struct channel *channel = courier->asked[i].channel;
            channel->returned++;
            if (!settle_unsent(station, (size_t)(channel - station->channels), lease)) {
                waiting_push(&channel->waiting, lease);
                station->waiting_count++;
                station->waiting_bytes += lease->message.body.len;
            }
            return;
        }
    }
    /* The queue handed out what was not asked for: our bug, but the batch must not be lost by it.
     */
    queue_release(courier->queue, lease);
    queue_lease_free(&lease);
}

/* Turns the queue's answer about gates into this station's closing; it is asked again at least each
 * second. */
static void note_gate(struct station *station, int64_t closed_until_wall_ms)
{
    if (closed_until_wall_ms == 0) {
        return;
    }
    int64_t left_ms = closed_until_wall_ms - clock_wall_ms();
    if (left_ms > 0) {
        int64_t wait_ms = left_ms < GATE_RECHECK_MS ? left_ms : GATE_RECHECK_MS;
        close_locally(station, wait_ms);
    }
}

/* What the answer says about one want; true when there may be more of it. */
static bool note_answer(const struct asked *asked)
{
    struct channel *channel = asked->channel;
    bool full = channel->asked > 0 && channel->returned >= channel->asked;
    if (asked->expired_only) {
        channel->full = false;
        asked->station->probe_at_ms = full ? 0 : asked->station->probe_at_ms;
    } else {
        channel->full = full;
    }
    return full;
}

static void on_claimed(void *ctx, int status, struct queue_lease **leases, size_t count,
                       const int64_t *closed_until_ms)
{
    struct courier *courier = ctx;
    for (size_t i = 0; i < courier->want_count; i++) {
        courier->asked[i].channel->returned = 0;
    }
    for (size_t i = 0; i < count; i++) {
        take_lease(courier, leases[i]);
    }
    bool more = courier->again;
    courier->again = false;
    for (size_t i = 0; i < courier->want_count; i++) {
        more = note_answer(&courier->asked[i]) || more;
        if (status == ERR_OK) {
            note_gate(courier->asked[i].station, closed_until_ms[i]);
        }
    }
    courier->want_count = 0;
    courier->claiming = false; /* not before: what is settled above must not end a drain */
    if (courier->draining) {
        for (size_t i = 0; i < courier->conf->backend_count; i++) {
            release_waiting(&courier->stations[i]);
        }
        drained_maybe(courier);
        return;
    }
    if (more) {
        courier->again = true;
    }
    pump_later(courier);
}

static void on_poll(void *ctx)
{
    struct courier *courier = ctx;
    courier->again = true;
    pump_later(courier);
}

static void claim(struct courier *courier)
{
    courier->again = false;
    courier->want_count = 0;
    for (size_t i = 0; i < courier->conf->backend_count; i++) {
        plan_station(&courier->stations[i]);
    }
    if (courier->want_count == 0) {
        return;
    }
    int status = queue_claim(courier->queue, courier->wants, courier->want_count, on_claimed,
                             courier);
    courier->claiming = status == ERR_OK;
    if (status != ERR_OK) {
        courier->want_count = 0;
    }
}

/* One round at the end of a turn: send what waits, and claim when there was a reason to. */
static void pump(void *ctx)
{
    struct courier *courier = ctx;
    if (courier->draining) {
        return;
    }
    bool finished = false;
    for (size_t i = 0; i < courier->conf->backend_count; i++) {
        pump_station(&courier->stations[i]);
        finished = finished || courier->stations[i].finished > 0;
    }
    if (!courier->claiming && (courier->again || finished)) {
        claim(courier);
    }
    int64_t wait_ms = queue_is_up(courier->queue) ? POLL_IDLE_MS : POLL_DOWN_MS;
    loop_timer_start(courier->loop, &courier->poll, wait_ms, on_poll, courier);
}

static void pump_later(struct courier *courier)
{
    if (!courier->draining) {
        loop_defer(courier->loop, &courier->pump, LOOP_TASK_WRITE, pump, courier);
    }
}

void courier_hint(struct courier *courier)
{
    courier->again = true;
    pump_later(courier);
}

/* Life. */

static void on_health(void *ctx, const char *backend, const char *account, const char *what,
                      const char *text, const char *remedy)
{
    struct courier *courier = ctx;
    events_health(courier->events, backend, account, what, text, remedy);
    if (strcmp(what, "ok") == 0) {
        courier_hint(courier);
    }
}

static void on_abandoned(void *ctx)
{
    struct courier *courier = ctx;
    courier->open_backends--;
    if (courier->open_backends == 0) {
        mem_free(courier);
    }
}

/* A backend could not be opened: closes those that were, and the courier goes with the last of
 * them. */
static void abandon(struct courier *courier)
{
    courier->draining = true;
    if (courier->open_backends == 0) {
        mem_free(courier);
        return;
    }
    size_t open = courier->open_backends;
    for (size_t i = 0; i < open; i++) {
        backend_close(&courier->stations[i].backend, 0, on_abandoned, courier);
    }
}

/* What one delivery may carry: what the backend takes, and what its quotas can ever grant at once.
 */
static size_t recipients_max(const struct courier_backend_conf *conf)
{
    uint64_t max = conf->backend->recipients_per_message;
    for (size_t i = 0; i < conf->recipient_window_count; i++) {
        max = conf->recipient_windows[i].units < max ? conf->recipient_windows[i].units : max;
    }
    return max > 0 && max < BATCH_RECIPIENTS_MAX ? (size_t)max : BATCH_RECIPIENTS_MAX;
}

int courier_new(struct loop *loop, struct queue *queue, const struct courier_conf *conf,
                struct events *events, struct courier_pace *pace, struct courier **out,
                struct err *err)
{
    ASSERT(conf->lane_count <= COURIER_LANES_MAX && conf->backend_count <= COURIER_BACKENDS_MAX);
    struct courier *courier = mem_zero(sizeof *courier);
    courier->loop = loop;
    courier->queue = queue;
    courier->conf = conf;
    courier->events = events;
    courier->pace = pace;
    struct backend_env env = {
        .loop = loop, .read_mail = conf->read_mail, .on_health = on_health, .ctx = courier};
    for (size_t i = 0; i < conf->backend_count; i++) {
        struct station *station = &courier->stations[i];
        station->courier = courier;
        station->conf = &conf->backends[i];
        station->index = i;
        station->defaults = backend_defaults(station->conf->backend->type);
        station->recipients_max = recipients_max(station->conf);
        int status = backend_open(&env, station->conf->backend, &station->backend, err);
        if (status != ERR_OK) {
            abandon(courier);
            return status;
        }
        courier->open_backends++;
    }
    *out = courier;
    courier_hint(courier);
    return ERR_OK;
}

static void courier_destroy(struct courier *courier)
{
    loop_timer_stop(&courier->poll);
    loop_timer_stop(&courier->drain_timer);
    loop_task_cancel(&courier->pump);
    for (size_t i = 0; i < courier->conf->backend_count; i++) {
        for (size_t l = 0; l < courier->conf->lane_count; l++) {
            mem_free(courier->stations[i].channels[l].waiting.leases);
        }
    }
    void (*on_drained)(void *) = courier->on_drained;
    void *ctx = courier->on_drained_ctx;
    mem_free(courier);
    if (on_drained != NULL) {
        on_drained(ctx);
    }
}

static bool quota_pending(const struct courier *courier)
{
    for (size_t i = 0; i < courier->conf->backend_count; i++) {
        if (courier->stations[i].asking_quota) {
            return true;
        }
    }
    return false;
}

static void drained_maybe(struct courier *courier)
{
    if (!courier->draining || courier->flights > 0 || courier->open_backends > 0) {
        return;
    }
    if (courier->settles == 0 && !courier->claiming && !quota_pending(courier)) {
        courier_destroy(courier);
    } else if (courier->overdue && courier->on_drained != NULL) {
        /* Redis does not answer. Closing the queue ends its calls, the last of which ends us. */
        void (*on_drained)(void *) = courier->on_drained;
        courier->on_drained = NULL;
        on_drained(courier->on_drained_ctx);
    }
}

static void on_drain_overdue(void *ctx)
{
    struct courier *courier = ctx;
    courier->overdue = true;
    drained_maybe(courier);
}

static void on_backend_closed(void *ctx)
{
    struct courier *courier = ctx;
    courier->open_backends--;
    drained_maybe(courier);
}

void courier_drain(struct courier *courier, int64_t grace_ms, void (*on_drained)(void *ctx),
                   void *ctx)
{
    ASSERT(!courier->draining);
    courier->draining = true;
    courier->on_drained = on_drained;
    courier->on_drained_ctx = ctx;
    loop_timer_start(courier->loop, &courier->drain_timer, grace_ms + DRAIN_SETTLE_MS,
                     on_drain_overdue, courier);
    loop_timer_stop(&courier->poll);
    loop_task_cancel(&courier->pump);
    for (size_t i = 0; i < courier->conf->backend_count; i++) {
        struct station *station = &courier->stations[i];
        station->closing = true;
        FAILPOINT("drain-releasing");
        release_waiting(station);
        backend_close(&station->backend, grace_ms, on_backend_closed, courier);
    }
    drained_maybe(courier);
}
