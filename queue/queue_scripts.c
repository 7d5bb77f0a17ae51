/* The Lua scripts, made into bytes at build time, by number. */
#include "queue/queue_internal.h"

#include "queue_scripts.h"

/* Only what brings new messages in may be refused when memory is full: everything else leads, in
 * the end, to messages leaving it. */
#define SCRIPT(word, oom)                                                             \
    {                                                                                 \
        .name = #word, .source = {.data = lua_##word, .len = sizeof(lua_##word) - 1}, \
        .allow_oom = (oom)                                                            \
    }

const struct redis_script queue_scripts[SCRIPT_COUNT] = {
    [SCRIPT_BODY] = SCRIPT(body, false),
    [SCRIPT_APPLY] = SCRIPT(apply, true),
    [SCRIPT_CLAIM] = SCRIPT(claim, true),
    [SCRIPT_DEDUP] = SCRIPT(dedup, true),
    [SCRIPT_DIGEST_ADD] = SCRIPT(digest_add, false),
    [SCRIPT_DIGEST_TAKE] = SCRIPT(digest_take, true),
    [SCRIPT_ENQUEUE] = SCRIPT(enqueue, false),
    [SCRIPT_FIND] = SCRIPT(find, true),
    [SCRIPT_GATE] = SCRIPT(gate, true),
    [SCRIPT_HEARTBEAT] = SCRIPT(heartbeat, true),
    [SCRIPT_KEY] = SCRIPT(key, true), /* a known key is answered though nothing new fits */
    [SCRIPT_LEVELS] = SCRIPT(levels, true),
    [SCRIPT_LIMIT_TAKE] = SCRIPT(limit_take, true),
    [SCRIPT_LIST] = SCRIPT(list, true),
    [SCRIPT_LIST_STATE] = SCRIPT(list_state, true),
    [SCRIPT_ORPHANS] = SCRIPT(orphans, true),
    [SCRIPT_PICK] = SCRIPT(pick, true),
    [SCRIPT_SETTLE] = SCRIPT(settle, true),
    [SCRIPT_SHOW] = SCRIPT(show, true),
    [SCRIPT_START] = SCRIPT(start, true),
    [SCRIPT_SWEEP] = SCRIPT(sweep, true),
    [SCRIPT_TOTALS] = SCRIPT(totals, true),
};
