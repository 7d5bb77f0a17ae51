/* The tokens of the simulated tenant: JWTs that look like Entra's, signed with a key that lives as
 * long as the process.
 *
 * The token simulator issues, the others verify (services.md 4.8). Thread: any; no state. */
#ifndef HEAVE_BENCH_SIM_JWT_H
#define HEAVE_BENCH_SIM_JWT_H

#include "gateway/base/buf.h"
#include "gateway/base/err.h"

#include <stdbool.h>
#include <stdint.h>

struct jwt {
    char audience[200]; /* "https://graph.microsoft.com" */
    char app[200];      /* client id */
    char tenant[100];
    char roles[400]; /* comma separated; empty: none */
    int64_t issued_s;
    int64_t expires_s; /* seconds since 1970 */
};

/* Appends the token. Errors: ERR_LIMIT, ERR_NOMEM (the buf). */
MUST_USE int jwt_issue(struct span key, const struct jwt *jwt, struct buf *out);
/* Checks the signature and reads the claims; whether it is expired or meant for this service is the
 * caller's to ask. Errors: ERR_INVAL (no token of ours), ERR_NOMEM. */
MUST_USE int jwt_read(struct span key, struct span token, struct jwt *out);
bool jwt_has_role(const struct jwt *jwt, const char *role);
/* Bytes equal, in a time that does not depend on where they differ. */
bool jwt_secret_eq(struct span a, struct span b);

#endif
