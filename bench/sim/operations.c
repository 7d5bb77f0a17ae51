#include "bench/sim/operations.h"

#define GENERATION_MAX ((size_t)250000)

/* Two generations of an open-addressing table: when the young one is full, the old one goes. */
struct generation {
    struct operation *slots;
    size_t size; /* power of two, or 0 */
    size_t used;
};
struct operations {
    struct generation young;
    struct generation old;
};

struct operations *operations_new(void)
{
    return mem_zero(sizeof(struct operations));
}

void operations_reset(struct operations *operations)
{
    mem_free(operations->young.slots);
    mem_free(operations->old.slots);
    *operations = (struct operations){0};
}

void operations_free(struct operations **operations)
{
    if (*operations != NULL) {
        operations_reset(*operations);
        mem_free(*operations);
        *operations = NULL;
    }
}

static int hex_value(char c)
{
    if (c >= '0' && c <= '9') {
        return c - '0';
    }
    if (c >= 'a' && c <= 'f') {
        return c - 'a' + 10;
    }
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

bool operation_id_read(struct span text, uint8_t out[16])
{
    size_t digits = 0;
    if (text.len != 36) {
        return false;
    }
    for (size_t i = 0; i < 36; i++) {
        bool dash = i == 8 || i == 13 || i == 18 || i == 23;
        int value = hex_value(text.data[i]);
        if (dash ? text.data[i] != '-' : value < 0) {
            return false;
        }
        if (!dash) {
            out[digits / 2] = (uint8_t)(digits % 2 == 0 ? value << 4 : out[digits / 2] | value);
            digits++;
        }
    }
    return true;
}

/* Ids are chosen by clients, and often random; all 16 bytes count. */
static size_t slot_of(const struct generation *generation, const uint8_t id[16])
{
    uint64_t hash = UINT64_C(14695981039346656037);
    for (size_t i = 0; i < 16; i++) {
        hash = (hash ^ id[i]) * UINT64_C(1099511628211);
    }
    size_t slot = (size_t)(hash ^ (hash >> 29)) & (generation->size - 1);
    while (generation->slots[slot].used && memcmp(generation->slots[slot].id, id, 16) != 0) {
        slot = (slot + 1) & (generation->size - 1);
    }
    return slot;
}

static const struct operation *find_in(const struct generation *generation, const uint8_t id[16])
{
    if (generation->size == 0) {
        return NULL;
    }
    const struct operation *found = &generation->slots[slot_of(generation, id)];
    return found->used ? found : NULL;
}

const struct operation *operations_find(const struct operations *operations, const uint8_t id[16])
{
    const struct operation *found = find_in(&operations->young, id);
    return found != NULL ? found : find_in(&operations->old, id);
}

static void grow(struct generation *generation)
{
    struct generation bigger = {.size = generation->size != 0 ? generation->size * 2 : 1024,
                                .used = generation->used};
    bigger.slots = mem_zero(bigger.size * sizeof(*bigger.slots));
    for (size_t i = 0; i < generation->size; i++) {
        if (generation->slots[i].used) {
            bigger.slots[slot_of(&bigger, generation->slots[i].id)] = generation->slots[i];
        }
    }
    mem_free(generation->slots);
    *generation = bigger;
}

void operations_add(struct operations *operations, const uint8_t id[16], int64_t now_ms,
                    enum operation_fate fate)
{
    if (operations->young.used == GENERATION_MAX) {
        mem_free(operations->old.slots);
        operations->old = operations->young;
        operations->young = (struct generation){0};
    }
    if (operations->young.used * 2 >= operations->young.size) {
        grow(&operations->young);
    }
    struct operation *place = &operations->young.slots[slot_of(&operations->young, id)];
    ASSERT(!place->used);
    *place = (struct operation){.created_ms = now_ms, .fate = fate, .used = true};
    memcpy(place->id, id, 16);
    operations->young.used++;
}
