#include "gateway/intake_batches.h"

struct batch *intake_batches(const struct route_conf *route, const struct route_plan *plan,
                             struct span lane, struct arena *arena)
{
    struct batch *batches = arena_alloc(arena, plan->batch_count * sizeof *batches);
    struct recipient *recipients = arena_alloc(arena, plan->recipient_count * sizeof *recipients);
    if (batches == NULL || recipients == NULL) {
        return NULL;
    }
    for (size_t b = 0; b < plan->batch_count; b++) {
        const struct route_batch *cut = &plan->batches[b];
        batches[b] = (struct batch){
            .number = (uint32_t)b,
            .lane = lane,
            .backend = arena_dup(arena, span_of(route->backends[cut->backend].name)),
            .recipients = recipients,
            .recipient_count = cut->recipient_count,
        };
        if (batches[b].backend.data == NULL) {
            return NULL;
        }
        for (size_t r = 0; r < cut->recipient_count; r++) {
            recipients[r] = (struct recipient){.address = cut->recipients[r]};
        }
        recipients += cut->recipient_count;
    }
    return batches;
}
