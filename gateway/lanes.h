/* How the lanes of one backend share what it can do: its slots (deliveries at once) and what to
 * claim for them. Pure: counts in, a choice out.
 *
 * What is guaranteed, for one backend of one delivery loop with C slots, lanes whose shares add up
 * to at most 100 % (larger sums are scaled down), and any window in which a lane always has work
 * waiting:
 *
 *  - Part. The lane holds C x share slots as soon as that many slots have come free: a freed slot
 *    goes to a lane below its part before any other. Parts are counted in whole slots, rounded up;
 *    where they are more than C together (few slots), turns among the lanes below their part are
 *    dealt by weight: with C = 1 the lane gets at least n x share - 1 of n turns. So neither many
 *    batches nor slow ones crowd another lane out, and bulk gets its 15 % under any storm of
 * alerts.
 *  - Lending. What a lane does not use others may take: idle parts are not lost. What is lent comes
 *    back with the next slot that frees.
 *  - Reserve. Lending stops at the last sqrt(C)/2 slots (none when C < 4): only the first lane and
 *    lanes below their part may take those. A batch of the first lane that arrives while it uses
 *    less than the reserve begins at once; otherwise it waits for the next slot to come free, never
 *    behind what was claimed ahead for other lanes.
 *  - Claiming. Each lane's waiting batches are its own, and at least one batch is asked for of a
 * lane that has none waiting (the courier leaves lanes out that had nothing until it hears that
 * there is work, or for 100 ms). While every slot is taken one of each lane below its part is
 * fetched, so that the choice above is between lanes and not between what happened to be here.
 *
 * The same for rates (`30/m`) is done in Redis over all replicas: queue/limiter.h.
 *
 * Must not know: leases, queues, backends, clocks. Thread: the courier's loop. */
#ifndef HEAVE_GATEWAY_LANES_H
#define HEAVE_GATEWAY_LANES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define LANES_MAX 8

struct lane_state {
    uint32_t share_percent;
    size_t waiting; /* claimed and not begun; kept by the owner */
    size_t running; /* begun and not ended: lanes_begin(), lanes_end() */
    bool full;      /* the last claim brought all that was asked: there is more */
    bool idle;      /* the last claim brought nothing: its part is lent */
    bool closed;    /* nothing of it may begin now (its quota); kept by the owner */
    uint64_t turn;  /* virtual time at which its next batch is due */
};

struct lanes {
    struct lane_state lanes[LANES_MAX]; /* in order of precedence */
    size_t count;
    uint32_t share_sum; /* at least 100 */
    uint64_t time;      /* virtual: the turn of the batch that began last */
};

/* All idle; `shares[i]` is lane i's share in percent, 1..100. */
void lanes_init(struct lanes *lanes, const uint32_t *shares, size_t count);

/* The lane whose oldest waiting batch begins next, with `room` slots free; false: none may. */
bool lanes_next(const struct lanes *lanes, size_t room, size_t *out_lane);
/* A batch of the lane has begun: takes a slot and the lane's turn. */
void lanes_begin(struct lanes *lanes, size_t lane);
void lanes_end(struct lanes *lanes, size_t lane);

/* How many batches to claim of each lane, with `room` slots free and `ahead` more expected to come
 * free soon; none while half of that waits here, so that claims bring several at once. `patient`:
 * nothing was claimed for a while, so that others with free slots had their chance: with no room at
 * all one batch of each lane below its part is worth having here. */
void lanes_plan(const struct lanes *lanes, size_t room, size_t ahead, bool patient,
                size_t out_wants[LANES_MAX]);

#endif
