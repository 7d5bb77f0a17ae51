/* The sharing of a backend between lanes, simulated: slots that are held for a while, lanes that
 * have work or not. No clock but the test's. */
#include "gateway/lanes.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

enum { ALERT, NORMAL, BULK, LANES };
#define SLOTS_MAX 64
#define ENDLESS 1000000

static const uint32_t shares[LANES] = {50, 35, 15};

struct slot {
    bool busy;
    size_t lane;
    int64_t ends;
};

/* A backend with so many slots; batches of a lane take `lasts` ticks. */
struct world {
    struct lanes lanes;
    struct slot slots[SLOTS_MAX];
    size_t slot_count;
    int64_t now;
    int64_t lasts[LANES];
    size_t begun[LANES];
    int64_t held[LANES]; /* slots times ticks */
};

static void world_init(struct world *world, size_t slots)
{
    *world = (struct world){.slot_count = slots, .lasts = {10, 10, 10}};
    lanes_init(&world->lanes, shares, LANES);
}

static size_t room_of(const struct world *world)
{
    size_t room = 0;
    for (size_t i = 0; i < world->slot_count; i++) {
        room += world->slots[i].busy ? 0 : 1;
    }
    return room;
}

static void put(struct world *world, size_t lane)
{
    for (size_t i = 0; i < world->slot_count; i++) {
        if (!world->slots[i].busy) {
            world->slots[i] = (struct slot){
                .busy = true, .lane = lane, .ends = world->now + world->lasts[lane]};
            break;
        }
    }
    lanes_begin(&world->lanes, lane);
    world->lanes.lanes[lane].waiting--;
    world->begun[lane]++;
}

static void fill(struct world *world)
{
    size_t lane = 0;
    while (lanes_next(&world->lanes, room_of(world), &lane)) {
        put(world, lane);
    }
}

/* One slot at a time comes free, and is given away before the next does. */
static void tick(struct world *world)
{
    world->now++;
    fill(world);
    for (size_t i = 0; i < world->slot_count; i++) {
        struct slot *slot = &world->slots[i];
        if (slot->busy) {
            world->held[slot->lane]++;
        }
        if (slot->busy && slot->ends <= world->now) {
            slot->busy = false;
            lanes_end(&world->lanes, slot->lane);
            fill(world);
        }
    }
}

static void run(struct world *world, int64_t ticks)
{
    for (int64_t i = 0; i < ticks; i++) {
        tick(world);
    }
}

static void forget(struct world *world)
{
    for (size_t l = 0; l < LANES; l++) {
        world->begun[l] = 0;
        world->held[l] = 0;
    }
}

/* What each lane got is at least its share, whatever the number of slots, when all have work. */
static void test_shares_of_turns(void **state)
{
    (void)state;
    for (size_t slots = 1; slots <= SLOTS_MAX; slots++) {
        struct world world;
        world_init(&world, slots);
        for (size_t l = 0; l < LANES; l++) {
            world.lanes.lanes[l].waiting = ENDLESS;
        }
        run(&world, 100);
        forget(&world);
        run(&world, 4000);
        size_t all = world.begun[ALERT] + world.begun[NORMAL] + world.begun[BULK];
        for (size_t l = 0; l < LANES; l++) {
            size_t least = all * shares[l] / 100 - all / 100;
            if (world.begun[l] < least) {
                fail_msg("%zu slots: lane %zu got %zu of %zu", slots, l, world.begun[l], all);
            }
        }
    }
}

/* With one slot the turns are exact: never more than one behind. */
static void test_turns_of_one_slot(void **state)
{
    (void)state;
    struct world world;
    world_init(&world, 1);
    world.lanes.lanes[ALERT].waiting = ENDLESS;
    world.lanes.lanes[BULK].waiting = ENDLESS;
    size_t bulk = 0;
    for (size_t n = 1; n <= 1000; n++) {
        size_t lane = NORMAL;
        assert_true(lanes_next(&world.lanes, 1, &lane));
        lanes_begin(&world.lanes, lane);
        lanes_end(&world.lanes, lane);
        bulk += lane == BULK ? 1 : 0;
        assert_true(100 * (bulk + 1) >= 15 * n);
        assert_true(100 * (n - bulk + 1) >= 50 * n);
    }
    assert_in_range(bulk, 220, 240); /* what normal leaves is shared by weight: 15 of 65 */
}

/* Slow batches do not crowd out quick ones. */
static void test_slow_bulk(void **state)
{
    (void)state;
    struct world world;
    world_init(&world, 10);
    world.lasts[BULK] = 5000;
    world.lanes.lanes[BULK].waiting = ENDLESS;
    run(&world, 100);
    assert_int_equal(room_of(&world), 1);
    world.lanes.lanes[ALERT].waiting = ENDLESS;
    run(&world, 5000); /* what was lent comes back */
    forget(&world);
    run(&world, 20000);
    assert_true(world.held[ALERT] >= 5 * 20000);
    assert_true(world.held[BULK] >= 20000);
}

/* Unused parts are lent, all but the reserve; the first lane may use even that. */
static void test_lending_and_reserve(void **state)
{
    static const size_t reserves[][2] = {{1, 0},  {3, 0},  {4, 1}, {15, 1},
                                         {16, 2}, {35, 2}, {64, 4}};
    (void)state;
    for (size_t i = 0; i < sizeof reserves / sizeof reserves[0]; i++) {
        struct world world;
        world_init(&world, reserves[i][0]);
        world.lanes.lanes[BULK].waiting = ENDLESS;
        run(&world, 50);
        assert_int_equal(room_of(&world), reserves[i][1]);
        world_init(&world, reserves[i][0]);
        world.lanes.lanes[ALERT].waiting = ENDLESS;
        run(&world, 50);
        assert_int_equal(room_of(&world), 0);
    }
}

/* An alert begins at once while there is a reserve, else with the next slot that comes free. */
static void test_an_alert_overtakes(void **state)
{
    (void)state;
    for (size_t slots = 1; slots <= SLOTS_MAX; slots++) {
        struct world world;
        world_init(&world, slots);
        world.lasts[BULK] = 100;
        world.lanes.lanes[BULK].waiting = ENDLESS;
        world.lanes.lanes[NORMAL].waiting = ENDLESS;
        run(&world, 1000);
        for (size_t alerts = 0; alerts < 20; alerts++) {
            forget(&world);
            world.lanes.lanes[ALERT].waiting = 1;
            if (room_of(&world) == 0) {
                while (world.begun[NORMAL] + world.begun[BULK] + world.begun[ALERT] == 0) {
                    tick(&world);
                }
            } else {
                fill(&world);
            }
            size_t others = world.begun[NORMAL] + world.begun[BULK];
            /* Slots that came free in the same tick were given away after it. */
            assert_int_equal(world.lanes.lanes[ALERT].waiting, 0);
            assert_true(others < slots);
            run(&world, 200);
        }
    }
}

/* A lane that was idle for long has no claim on the past: others go on getting their parts. */
static void test_idleness_is_not_saved(void **state)
{
    (void)state;
    struct world world;
    world_init(&world, 1);
    world.lanes.lanes[BULK].waiting = ENDLESS;
    run(&world, 10000);
    world.lanes.lanes[ALERT].waiting = ENDLESS;
    forget(&world);
    run(&world, 1000);
    assert_in_range(world.begun[BULK], 20, 30);
}

static void test_a_closed_lane_is_passed_over(void **state)
{
    (void)state;
    struct lanes lanes;
    size_t lane = LANES;
    size_t wants[LANES_MAX];
    lanes_init(&lanes, shares, LANES);
    lanes.lanes[ALERT].waiting = 1;
    lanes.lanes[ALERT].closed = true;
    assert_false(lanes_next(&lanes, 4, &lane));
    lanes.lanes[BULK].waiting = 1;
    assert_true(lanes_next(&lanes, 4, &lane));
    assert_int_equal(lane, BULK);
    lanes_plan(&lanes, 4, 0, true, wants);
    assert_int_equal(wants[ALERT], 0);
    assert_true(wants[NORMAL] >= 1);
}

static void test_plan(void **state)
{
    (void)state;
    struct lanes lanes;
    size_t wants[LANES_MAX];
    lanes_init(&lanes, shares, LANES);
    /* At first nobody knows anything: parts, and one at least. */
    lanes_plan(&lanes, 20, 0, false, wants);
    assert_int_equal(wants[ALERT], 10);
    assert_int_equal(wants[NORMAL], 7);
    assert_int_equal(wants[BULK], 3);
    /* Bulk alone has work: it is lent all but the reserve of two. */
    lanes.lanes[ALERT].idle = lanes.lanes[NORMAL].idle = true;
    lanes.lanes[BULK].full = true;
    lanes_plan(&lanes, 20, 0, false, wants);
    assert_int_equal(wants[BULK], 18);
    assert_int_equal(wants[ALERT], 10);
    /* What waits counts; what is claimed ahead for bulk takes nothing from alert. */
    lanes.lanes[BULK].waiting = 20;
    lanes_plan(&lanes, 20, 30, false, wants);
    assert_int_equal(wants[BULK], 28);
    assert_int_equal(wants[ALERT], 25);
    lanes.lanes[BULK].waiting = 24; /* half of 48 */
    lanes_plan(&lanes, 20, 30, false, wants);
    assert_int_equal(wants[BULK], 0);
    assert_int_equal(wants[ALERT], 25);
    lanes.lanes[BULK].waiting = 400;
    lanes_plan(&lanes, 1, 0, false, wants);
    assert_int_equal(wants[BULK], 0);
    assert_int_equal(wants[ALERT], 1);
}

/* No room: nothing, or after a while one of each lane below its part. */
static void test_plan_without_room(void **state)
{
    (void)state;
    struct lanes lanes;
    size_t wants[LANES_MAX];
    lanes_init(&lanes, shares, LANES);
    for (size_t i = 0; i < 4; i++) {
        lanes_begin(&lanes, BULK);
    }
    lanes_plan(&lanes, 0, 0, false, wants);
    assert_int_equal(wants[ALERT] + wants[NORMAL] + wants[BULK], 0);
    lanes_plan(&lanes, 0, 0, true, wants);
    assert_int_equal(wants[ALERT], 1);
    assert_int_equal(wants[NORMAL], 1);
    assert_int_equal(wants[BULK], 0);
    lanes.lanes[ALERT].waiting = 1;
    lanes_plan(&lanes, 0, 0, true, wants);
    assert_int_equal(wants[ALERT], 0);
}

/* Shares of more than 100 % together are scaled down, so that parts can be kept. */
static void test_shares_above_a_hundred(void **state)
{
    static const uint32_t large[] = {100, 100};
    (void)state;
    struct lanes lanes;
    size_t wants[LANES_MAX];
    lanes_init(&lanes, large, 2);
    lanes_plan(&lanes, 10, 0, false, wants);
    assert_int_equal(wants[0], 5);
    assert_int_equal(wants[1], 5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shares_of_turns),
        cmocka_unit_test(test_turns_of_one_slot),
        cmocka_unit_test(test_slow_bulk),
        cmocka_unit_test(test_lending_and_reserve),
        cmocka_unit_test(test_an_alert_overtakes),
        cmocka_unit_test(test_idleness_is_not_saved),
        cmocka_unit_test(test_a_closed_lane_is_passed_over),
        cmocka_unit_test(test_plan),
        cmocka_unit_test(test_plan_without_room),
        cmocka_unit_test(test_shares_above_a_hundred),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
