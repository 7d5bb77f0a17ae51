/* What policy.c (rules) and policy_auth.c (credentials) share; for these two alone. */
#ifndef HEAVE_GATEWAY_POLICY_PRIVATE_H
#define HEAVE_GATEWAY_POLICY_PRIVATE_H

#include "gateway/policy.h"

#include <stdatomic.h>

/* One address block of one client, in the order of the file. */
struct policy_block {
    struct policy_network network;
    size_t client;
};

struct policy {
    atomic_size_t references;
    struct policy_client *clients;
    size_t client_count;
    struct policy_block *blocks;
    size_t block_count;
};

#endif
