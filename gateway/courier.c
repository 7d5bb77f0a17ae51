#include "gateway/courier_private.h"

#include "gateway/base/clock.h"
#include "gateway/base/codec.h"
#include "gateway/base/failpoint.h"

/* Invariants every path keeps:
 *  - a lease is either in a waiting list, in a flight, or was settled or released; exactly one of
 * them;
 *  - queue_start() succeeds before a backend may send, and no backend sends after it failed;
 *  - at most one claim is on its way;
 *  - while anything could be claimable, a poll timer, a claim, or a flight is pending, so that
 * nothing stalls. */

#define POLL_IDLE_MS 100
/* Beyond the grace of a drain: time for the last settlements. */
#define DRAIN_SETTLE_MS 5000

/* Waiting lists. */

void station_waiting_push(struct station *station, size_t lane, struct queue_lease *lease)
{
    struct waiting *w = &station->channels[lane].waiting;
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
    station->lanes.lanes[lane].waiting++;
    station->waiting_count++;
    station->waiting_bytes += lease->message.body.len;
}

static void waiting_removed(struct station *station, size_t lane, const struct queue_lease *lease)
{
    station->channels[lane].waiting.count--;
    station->lanes.lanes[lane].waiting--;
    station->waiting_count--;
    station->waiting_bytes -= lease->message.body.len;
}

struct queue_lease *station_waiting_pop(struct station *station, size_t lane)
{
    struct waiting *w = &station->channels[lane].waiting;
    ASSERT(w->count > 0);
    struct queue_lease *lease = w->leases[w->head];
    w->head = (w->head + 1) % w->cap;
    waiting_removed(station, lane, lease);
    return lease;
}

/* The last one first: each goes to the front of its list. */
void station_release_lane(struct station *station, size_t lane)
{
    struct waiting *w = &station->channels[lane].waiting;
    while (w->count > 0) {
        struct queue_lease *lease = w->leases[(w->head + w->count - 1) % w->cap];
        waiting_removed(station, lane, lease);
        queue_release(station->courier->queue, lease);
        queue_lease_free(&lease);
    }
}

void station_release_waiting(struct station *station)
{
    for (size_t l = 0; l < station->lanes.count; l++) {
        station_release_lane(station, l);
    }
}

/* Gates. */

static int64_t station_closed_until(const struct station *station)
{
    int64_t shared = atomic_load_explicit(&station->courier->pace->closed_until_ms[station->index],
                                          memory_order_relaxed);
    return shared > station->gate_until_ms ? shared : station->gate_until_ms;
}

bool station_is_open(const struct station *station)
{
    return !station->closing &&
           station_closed_until(station) <= loop_now_ms(station->courier->loop);
}

/* Closes it for this loop; a later time wins. */
void station_close_locally(struct station *station, int64_t wait_ms)
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
    queue_gate_close(courier->queue, station->conf->backend->name,
                     queue_wall_ms(courier->queue) + wait_ms, reason);
    station_release_waiting(station);
}

/* Settling. */

static void on_settled(void *ctx, int status)
{
    struct courier *courier = ctx;
    courier->settles--;
    if (status != ERR_OK) {
        events_sweep(courier->events, status == ERR_STALE ? "late_settle" : "settle_failed", 1);
    }
    courier_drained_maybe(courier);
}

static void report_outcome(struct station *station, const struct queue_lease *lease,
                           enum recipient_state state, size_t count)
{
    if (count == 0) {
        return;
    }
    events_outcome(station->courier->events, &(struct event_outcome){
                                                 .id = lease->message.id,
                                                 .batch = lease->batch.number,
                                                 .lane = lease->batch.lane,
                                                 .backend = station->conf->backend->name,
                                                 .state = state,
                                                 .recipients = count,
                                                 .age_ms = queue_wall_ms(station->courier->queue) -
                                                           lease->message.accepted_ms,
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
        .now_ms = queue_wall_ms(courier->queue),
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
    station->has_finished = true;
    courier->flights--;
    lanes_end(&station->lanes, flight->lane);
    mem_free(flight);
    courier_pump_later(courier);
    courier_drained_maybe(courier);
}

static struct flight *flight_new(struct station *station, size_t lane, struct queue_lease *lease,
                                 size_t recipients_max)
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
         i < lease->batch.recipient_count && delivery->recipient_count < recipients_max; i++) {
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
bool station_settle_unsent(struct station *station, size_t lane, struct queue_lease *lease)
{
    struct courier *courier = station->courier;
    int64_t now_ms = queue_wall_ms(courier->queue);
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

void station_launch(struct station *station, size_t lane, struct queue_lease *lease,
                    size_t recipients_max)
{
    struct courier *courier = station->courier;
    if (station_settle_unsent(station, lane, lease)) {
        return;
    }
    FAILPOINT("courier-before-send");
    struct flight *flight = flight_new(station, lane, lease, recipients_max);
    station->launched_ms = loop_now_ms(courier->loop);
    courier->flights++;
    lanes_begin(&station->lanes, lane);
    if (backend_deliver(station->backend, &flight->delivery) != ERR_OK) {
        /* Its room has gone since it was asked, or it does not want this batch: not again at once.
         */
        courier->flights--;
        lanes_end(&station->lanes, lane);
        station_close_locally(station, COURIER_REFUSED_WAIT_MS);
        queue_release(courier->queue, lease);
        queue_lease_free(&lease);
        mem_free(flight);
    }
}

/* Lanes whose quota is used up for now; what waits of them goes back. */
static void note_closed_lanes(struct station *station)
{
    int64_t now_ms = loop_now_ms(station->courier->loop);
    for (size_t l = 0; l < station->lanes.count; l++) {
        bool closed = station->channels[l].closed_until_ms > now_ms;
        station->lanes.lanes[l].closed = closed;
        if (closed) {
            station_release_lane(station, l);
        }
    }
}

/* True when a batch may begin: then its lane. */
static bool next_lane(struct station *station, size_t *out_lane)
{
    return station->waiting_count > 0 && station_is_open(station) && !station->asking_quota &&
           queue_is_up(station->courier->queue) &&
           lanes_next(&station->lanes, backend_room(station->backend), out_lane);
}

static void pump_station(struct station *station)
{
    bool limited = station->conf->message_window_count + station->conf->recipient_window_count > 0;
    size_t lane = 0;
    note_closed_lanes(station);
    while (next_lane(station, &lane)) {
        struct queue_lease *lease = station_waiting_pop(station, lane);
        if (limited) {
            station_start_quota(station, lane, lease);
        } else {
            station_launch(station, lane, lease, station->recipients_max);
        }
    }
    if (station->waiting_count > 0 && !station_is_open(station)) {
        station_release_waiting(station);
    }
}

static void on_poll(void *ctx)
{
    struct courier *courier = ctx;
    courier->again = true;
    courier->hinted = true;
    courier_pump_later(courier);
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
        finished = finished || courier->stations[i].has_finished;
    }
    if (!courier->claiming && (courier->again || finished)) {
        courier_claim(courier);
    }
    int64_t wait_ms = queue_is_up(courier->queue) ? POLL_IDLE_MS : COURIER_DOWN_WAIT_MS;
    loop_timer_start(courier->loop, &courier->poll, wait_ms, on_poll, courier);
}

void courier_pump_later(struct courier *courier)
{
    if (!courier->draining) {
        loop_defer(courier->loop, &courier->pump, LOOP_TASK_WRITE, pump, courier);
    }
}

void courier_hint(struct courier *courier)
{
    courier->again = true;
    courier->hinted = true;
    courier_pump_later(courier);
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

static void init_lanes(struct station *station)
{
    const struct courier_conf *conf = station->courier->conf;
    uint32_t shares[LANES_MAX];
    for (size_t l = 0; l < conf->lane_count; l++) {
        shares[l] = conf->lanes[l].share_percent;
    }
    lanes_init(&station->lanes, shares, conf->lane_count);
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
        init_lanes(station);
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

void courier_drained_maybe(struct courier *courier)
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
    courier_drained_maybe(courier);
}

static void on_backend_closed(void *ctx)
{
    struct courier *courier = ctx;
    courier->open_backends--;
    courier_drained_maybe(courier);
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
        station_release_waiting(station);
        backend_close(&station->backend, grace_ms, on_backend_closed, courier);
    }
    courier_drained_maybe(courier);
}
