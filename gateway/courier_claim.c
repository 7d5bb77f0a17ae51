/* The part of the courier that claims: how much of which lane to ask the queue for, and what its
 * answer means. */
#include "gateway/courier_private.h"

#include "gateway/base/clock.h"

#include <assert.h>

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

static_assert(COURIER_BACKENDS_MAX * COURIER_LANES_MAX <= QUEUE_WANTS_MAX,
              "one claim asks for everything");

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
            struct queue_lease *lease = courier_waiting_pop(w);
            size_t bytes = lease->message.body.len;
            if (station_settle_unsent(station, l, lease)) {
                station->waiting_count--;
                station->waiting_bytes -= bytes;
            } else {
                courier_waiting_push(w, lease);
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
        station_release_waiting(station);
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
            if (!station_settle_unsent(station, (size_t)(channel - station->channels), lease)) {
                courier_waiting_push(&channel->waiting, lease);
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
    int64_t left_ms = closed_until_wall_ms - queue_wall_ms(station->courier->queue);
    if (left_ms > 0) {
        int64_t wait_ms = left_ms < GATE_RECHECK_MS ? left_ms : GATE_RECHECK_MS;
        station_close_locally(station, wait_ms);
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
            station_release_waiting(&courier->stations[i]);
        }
        courier_drained_maybe(courier);
        return;
    }
    if (more) {
        courier->again = true;
    }
    courier_pump_later(courier);
}

void courier_claim(struct courier *courier)
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
