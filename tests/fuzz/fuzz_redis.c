/* Fuzzes what is read out of a Redis server's words: INFO, error replies, redirects. */
#include "queue/cluster.h"
#include "queue/redis_facts.h"

#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct span input = span_make((const char *)data, size);
    struct redis_facts facts = {.append_only = -1};
    struct queue_conf conf = {.durability = QUEUE_FSYNC};
    struct cluster_address address = {0};
    struct err err = {0};
    enum redis_wait wait = REDIS_WAIT_NONE;
    char warning[300];
    redis_facts_info(&facts, input);
    if (redis_facts_judge(&facts, &conf, &wait, warning, &err) == 0) {
        ASSERT(facts.version >= REDIS_VERSION_NEEDED && facts.append_only != 0);
    } else {
        ASSERT(err.text[0] != '\0');
    }
    ASSERT(facts.replicas == redis_facts_replicas(input));
    if (cluster_redirect(input, &address) != CLUSTER_LATER) {
        const struct redis_refusal *refusal = redis_refusal_find(input);
        ASSERT(address.port != 0 && address.host.len < size);
        ASSERT(refusal != NULL && refusal->redirect);
    }
    ASSERT(cluster_slot(input) < CLUSTER_SLOTS);
    return 0;
}
