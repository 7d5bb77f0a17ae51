/* The Lua scripts, made into bytes at build time, by number. */
#include "queue/queue_internal.h"

#include "queue_scripts.h"

#define SCRIPT(word)                                                                  \
    {                                                                                 \
        .name = #word, .source = {.data = lua_##word, .len = sizeof(lua_##word) - 1 } \
    }

const struct redis_script queue_scripts[SCRIPT_COUNT] = {
    [SCRIPT_CLAIM] = SCRIPT(claim),
    [SCRIPT_ENQUEUE] = SCRIPT(enqueue),
    [SCRIPT_GATE] = SCRIPT(gate),
    [SCRIPT_HEARTBEAT] = SCRIPT(heartbeat),
    [SCRIPT_LIMIT_TAKE] = SCRIPT(limit_take),
    [SCRIPT_LIST] = SCRIPT(list),
    [SCRIPT_SETTLE] = SCRIPT(settle),
    [SCRIPT_SHOW] = SCRIPT(show),
    [SCRIPT_START] = SCRIPT(start),
    [SCRIPT_SWEEP] = SCRIPT(sweep),
    [SCRIPT_TOTALS] = SCRIPT(totals),
};
