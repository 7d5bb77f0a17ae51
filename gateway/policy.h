/* Who may send what: clients, networks, credentials, allowed senders and recipients.
 *
 * Must not know: protocols, Redis, routing. Pure but for password hashing, which runs on the loop's thread pool and is
 * cached. Thread: a policy is an immutable snapshot, shared by all ingress threads; a policy_cache belongs to one loop.
 *
 * An unknown user costs as much time as a wrong password (a hash is computed all the same). */
#ifndef HEAVE_GATEWAY_POLICY_H
#define HEAVE_GATEWAY_POLICY_H

#include "gateway/base/buf.h"
#include "gateway/base/loop.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum policy_recipients {
    POLICY_RECIPIENTS_ANY,
    POLICY_RECIPIENTS_INTERNAL,
    POLICY_RECIPIENTS_EXTERNAL,
};

/* One row of `clients:`. Strings live as long as the policy. */
struct policy_client_conf {
    const char *name;
    const char *user;          /* SMTP AUTH and HTTP Basic; NULL: none */
    const char *password_hash; /* crypt(3) */
    const char *api_key_hash;  /* crypt(3); NULL: none */
    const char *const *networks;
    size_t network_count;
    const char *const *from;   /* "*@contoso.com", "scan@contoso.com", "*"; none: any sender */
    size_t from_count;
    const char *lane;          /* NULL: "normal" */
    bool may_choose_lane;      /* X-Heave-Lane / "lane" honoured */
    enum policy_recipients recipients;
    uint32_t scopes;           /* enum policy_scope */
};
enum policy_scope {
    POLICY_SCOPE_SEND = 1u << 0,
    POLICY_SCOPE_READ = 1u << 1,
    POLICY_SCOPE_ADMIN = 1u << 2,
};

struct policy;
/* A client of the snapshot; valid while a reference to the policy is held. */
struct policy_client {
    const struct policy_client_conf *conf;
    size_t index;
};

/* `clients` must outlive the policy. Errors: ERR_INVAL (network, pattern, hash no crypt(3) knows) with a sentence
 * naming client and value. */
MUST_USE int policy_new(const struct policy_client_conf *clients, size_t count, struct policy **out,
                        struct err *err);
struct policy *policy_ref(struct policy *policy);
void policy_unref(struct policy **policy);

/* The client whose network holds `address` ("192.0.2.1", "2001:db8::1", "::ffff:192.0.2.1" counts as IPv4, "unix"
 * never matches); the longest prefix wins, then the order of the file. NULL: none. */
const struct policy_client *policy_by_network(const struct policy *policy, const char *address);

/* Whether the client may use this sender: reverse-path or From. An empty reverse-path (bounces) is allowed. */
bool policy_sender_allowed(const struct policy_client *client, struct span address);

/* Checked credentials of the last 10 minutes, keyed by SHA-256 with a random salt, so that a thousand sessions hash once.
 * Failures are remembered for 5 s. Bounded to 1,024 entries. */
struct policy_cache;
struct policy_cache *policy_cache_new(struct loop *loop);
void policy_cache_free(struct policy_cache **cache);

/* `client` is NULL when the credentials are wrong. */
typedef void (*policy_auth_cb)(void *ctx, const struct policy_client *client);
/* A check that runs; policy_auth_cancel() before `ctx` goes away: then the callback does not run. */
struct policy_auth;
/* Checks user and password. The callback runs later, exactly once, unless cancelled. Password bytes are copied and
 * wiped. */
struct policy_auth *policy_auth_password(struct policy_cache *cache, struct policy *policy, struct span user,
                                         struct span password, policy_auth_cb cb, void *ctx);
/* Finds the client an API key belongs to. */
struct policy_auth *policy_auth_key(struct policy_cache *cache, struct policy *policy, struct span key,
                                    policy_auth_cb cb, void *ctx);
void policy_auth_cancel(struct policy_auth **auth);

/* Makes a yescrypt hash of `secret` ("$y$..."). Errors: ERR_IO. */
MUST_USE int policy_hash(struct span secret, char *out, size_t out_bytes);

#endif
