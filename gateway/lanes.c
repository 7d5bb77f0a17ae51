/* Start-time fair queueing over the lanes, with parts of the slots on top of it: each turn a lane
 * takes moves its virtual time on by the inverse of its share; who is furthest behind goes next. A
 * lane that was idle starts at the present and has no claim on the past. */
#include "gateway/lanes.h"

#include "gateway/base/err.h"

/* Virtual time of one turn at a share of 1 %. */
#define TURN ((uint64_t)1 << 20)

void lanes_init(struct lanes *lanes, const uint32_t *shares, size_t count)
{
    ASSERT(count <= LANES_MAX);
    *lanes = (struct lanes){.count = count};
    for (size_t l = 0; l < count; l++) {
        ASSERT(shares[l] > 0);
        lanes->lanes[l].share_percent = shares[l];
        lanes->share_sum += shares[l];
    }
    lanes->share_sum = lanes->share_sum > 100 ? lanes->share_sum : 100;
}

/* `slots` times the lane's share, rounded up. */
static size_t part_of(const struct lanes *lanes, size_t lane, size_t slots)
{
    return (slots * lanes->lanes[lane].share_percent + lanes->share_sum - 1) / lanes->share_sum;
}

static size_t slots_of(const struct lanes *lanes, size_t room)
{
    size_t slots = room;
    for (size_t l = 0; l < lanes->count; l++) {
        slots += lanes->lanes[l].running;
    }
    return slots;
}

/* The slots that are not lent: sqrt(slots) / 2, since arrivals spread like the root of their
 * number.
 */
static size_t reserve_of(size_t slots)
{
    size_t reserve = 0;
    while (4 * (reserve + 1) * (reserve + 1) <= slots) {
        reserve++;
    }
    return reserve;
}

/* How many of the free slots the lane may take, were it alone. */
static size_t usable(const struct lanes *lanes, size_t lane, size_t room)
{
    size_t slots = slots_of(lanes, room);
    size_t part = part_of(lanes, lane, slots);
    size_t running = lanes->lanes[lane].running;
    size_t own = part > running ? part - running : 0;
    size_t reserve = lane == 0 ? 0 : reserve_of(slots);
    size_t lent = room > reserve ? room - reserve : 0;
    own = own < room ? own : room;
    return own > lent ? own : lent;
}

static bool below_part(const struct lanes *lanes, size_t lane, size_t slots)
{
    return lanes->lanes[lane].running < part_of(lanes, lane, slots);
}

/* The virtual time at which the lane's next turn begins. */
static uint64_t turn_of(const struct lanes *lanes, size_t lane)
{
    uint64_t turn = lanes->lanes[lane].turn;
    return turn > lanes->time ? turn : lanes->time;
}

bool lanes_next(const struct lanes *lanes, size_t room, size_t *out_lane)
{
    size_t slots = slots_of(lanes, room);
    bool found = false;
    size_t best = 0;
    for (size_t l = 0; l < lanes->count; l++) {
        if (lanes->lanes[l].waiting == 0 || lanes->lanes[l].closed || usable(lanes, l, room) == 0) {
            continue;
        }
        bool below = below_part(lanes, l, slots);
        bool best_below = found && below_part(lanes, best, slots);
        bool earlier = found && turn_of(lanes, l) < turn_of(lanes, best);
        if (!found || (below && !best_below) || (below == best_below && earlier)) {
            best = l;
            found = true;
        }
    }
    if (found) {
        *out_lane = best;
    }
    return found;
}

void lanes_begin(struct lanes *lanes, size_t lane)
{
    struct lane_state *state = &lanes->lanes[lane];
    lanes->time = turn_of(lanes, lane);
    state->turn = lanes->time + TURN / state->share_percent;
    state->running++;
}

void lanes_end(struct lanes *lanes, size_t lane)
{
    ASSERT(lanes->lanes[lane].running > 0);
    lanes->lanes[lane].running--;
}

/* What the lanes that had nothing leave of `slots` to each lane that had more than it asked for. */
static size_t lent_to_each(const struct lanes *lanes, size_t slots)
{
    size_t lent = 0;
    size_t hungry = 0;
    for (size_t l = 0; l < lanes->count; l++) {
        const struct lane_state *state = &lanes->lanes[l];
        if (state->closed || (state->idle && state->waiting == 0)) {
            lent += part_of(lanes, l, slots);
        } else {
            hungry += state->full ? 1 : 0;
        }
    }
    return hungry > 0 ? lent / hungry : 0;
}

void lanes_plan(const struct lanes *lanes, size_t room, size_t ahead, bool patient,
                size_t out_wants[LANES_MAX])
{
    size_t slots = slots_of(lanes, room);
    for (size_t l = 0; l < lanes->count; l++) {
        const struct lane_state *state = &lanes->lanes[l];
        size_t most = usable(lanes, l, room) + ahead;
        size_t want = part_of(lanes, l, most);
        if (state->full) {
            want += lent_to_each(lanes, most);
            want = want < most ? want : most;
        }
        if (most == 0 && patient && below_part(lanes, l, slots)) {
            want = 1;
        }
        bool enough = state->closed || 2 * state->waiting >= want;
        out_wants[l] = enough ? 0 : want - state->waiting;
    }
}
