/* The part of the courier that claims: how much of which lane to ask the queue for, and what its
 * answer means. */
#include "gateway/courier_private.h"

#include "gateway/base/clock.h"

#include <assert.h>

/* Batches claimed ahead of a backend's room, so that the next ones are there when a slot frees:
 * what it delivers in so long, at most so many. */
#define AHEAD_MS 50
#define AHEAD_MAX 64
/* Nor more while so much waits already: large messages are claimed as they are sent. */
#define AHEAD_MAX_BYTES ((size_t)8 << 20)
/* A gate answer of the queue in wall time is re-asked at least this often. */
#define GATE_RECHECK_MS 1000
/* A backend that takes nothing is asked about expired batches this often, so many at a time. */
#define PROBE_EVERY_MS 5000
#define PROBE_BATCHES 64

/* While every slot is taken, what a lane below its part has is fetched only when nothing was
 * claimed for the station for so long: loops with free slots come first. What the other stations
 * claim does not count, or the busy ones would keep alerts from the slow. */
#define PATIENCE_MS 50

/* A lane that had nothing is asked for again when a hint says that somebody has work, and so often
 * in case a hint was lost: one empty want makes a claim go through every shard. */
#define ASK_ALL_MS 100

static_assert(COURIER_LANES_MAX == LANES_MAX, "lanes.h has room for all");
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
    station->claimed_ms = loop_now_ms(courier->loop);
    courier->want_count++;
}

static void expire_waiting(struct station *station)
{
    for (size_t l = 0; l < station->lanes.count; l++) {
        for (size_t left = station->channels[l].waiting.count; left > 0; left--) {
            struct queue_lease *lease = station_waiting_pop(station, l);
            if (!station_settle_unsent(station, l, lease)) {
                station_waiting_push(station, l, lease);
            }
        }
    }
}

/* What expires while nothing is sent still comes to its end; what was claimed and finds no room
 * goes back, where others may find it. True when it did. */
static bool probe(struct station *station)
{
    int64_t now_ms = loop_now_ms(station->courier->loop);
    station->probe_at_ms = now_ms + PROBE_EVERY_MS;
    expire_waiting(station);
    bool stuck = backend_room(station->backend) == 0 &&
                 now_ms - station->launched_ms >= PROBE_EVERY_MS;
    if (stuck) {
        station_release_waiting(station);
    }
    return stuck;
}

/* Measures how fast the backend delivers. */
static size_t ahead_of(struct station *station)
{
    int64_t now_ms = loop_now_ms(station->courier->loop);
    int64_t passed_ms = now_ms - station->pace_ms;
    if (passed_ms >= AHEAD_MS) {
        size_t ahead = (station->finished * AHEAD_MS + (size_t)passed_ms - 1) / (size_t)passed_ms;
        station->ahead = ahead < AHEAD_MAX ? ahead : AHEAD_MAX;
        station->finished = 0;
        station->pace_ms = now_ms;
    }
    return station->ahead;
}

/* What one station asks for: what its lanes can begin now and soon, and at times what has expired
 * of those that cannot begin anything. */
struct plan {
    size_t wants[LANES_MAX];
    bool probing;
};

static void plan_station(struct station *station, bool all, struct plan *out)
{
    bool patient = loop_now_ms(station->courier->loop) - station->claimed_ms >= PATIENCE_MS;
    *out = (struct plan){0};
    if (station->closing) {
        return;
    }
    size_t ahead = ahead_of(station);
    out->probing = loop_now_ms(station->courier->loop) >= station->probe_at_ms;
    bool stuck = out->probing && probe(station);
    station->has_finished = false;
    if (station_is_open(station) && !stuck) {
        lanes_plan(&station->lanes, backend_room(station->backend), ahead, patient, out->wants);
    }
    for (size_t l = 0; l < station->lanes.count; l++) {
        /* Large bodies do not pile up, but never stand in the way of another lane. */
        bool heavy = station->waiting_bytes >= AHEAD_MAX_BYTES &&
                     station->channels[l].waiting.count > 0;
        if (heavy || (station->lanes.lanes[l].idle && !all)) {
            out->wants[l] = 0;
        }
    }
}

/* Lane by lane, all stations: what a claim may bring of bodies is spent on the first lanes first.
 */
static void plan_claim(struct courier *courier, bool all)
{
    struct plan plans[COURIER_BACKENDS_MAX];
    size_t stations = courier->conf->backend_count;
    for (size_t i = 0; i < stations; i++) {
        plan_station(&courier->stations[i], all, &plans[i]);
    }
    courier->want_count = 0;
    for (size_t l = 0; l < courier->conf->lane_count; l++) {
        for (size_t i = 0; i < stations; i++) {
            if (plans[i].wants[l] > 0) {
                add_want(&courier->stations[i], l, plans[i].wants[l], false);
            } else if (plans[i].probing) {
                add_want(&courier->stations[i], l, PROBE_BATCHES, true);
            }
        }
    }
}

static void take_lease(struct courier *courier, struct queue_lease *lease)
{
    for (size_t i = 0; i < courier->want_count; i++) {
        if (span_eq(span_of(courier->wants[i].backend), lease->batch.backend) &&
            span_eq(span_of(courier->wants[i].lane), lease->batch.lane)) {
            struct station *station = courier->asked[i].station;
            struct channel *channel = courier->asked[i].channel;
            size_t lane = (size_t)(channel - station->channels);
            channel->returned++;
            if (!station_settle_unsent(station, lane, lease)) {
                station_waiting_push(station, lane, lease);
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
    struct station *station = asked->station;
    const struct channel *channel = asked->channel;
    struct lane_state *lane = &station->lanes.lanes[channel - station->channels];
    bool full = channel->asked > 0 && channel->returned >= channel->asked;
    if (asked->expired_only) {
        station->probe_at_ms = full ? 0 : station->probe_at_ms;
    } else {
        lane->full = full;
        lane->idle = channel->returned == 0;
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
        if (status == ERR_OK) {
            more = note_answer(&courier->asked[i]) || more;
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
    int64_t now_ms = loop_now_ms(courier->loop);
    bool all = courier->hinted || now_ms - courier->asked_all_ms >= ASK_ALL_MS;
    plan_claim(courier, all);
    if (courier->want_count == 0) {
        return;
    }
    courier->asked_all_ms = all ? now_ms : courier->asked_all_ms;
    courier->hinted = courier->hinted && !all;
    int status = queue_claim(courier->queue, courier->wants, courier->want_count, on_claimed,
                             courier);
    courier->claiming = status == ERR_OK;
    if (status != ERR_OK) {
        courier->want_count = 0;
    }
}
