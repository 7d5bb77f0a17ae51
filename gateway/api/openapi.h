/* /openapi.json: the OpenAPI 3.1 document of the resources in api_routes(). Thread: the loop's. */
#ifndef HEAVE_GATEWAY_API_OPENAPI_H
#define HEAVE_GATEWAY_API_OPENAPI_H

#include "gateway/api/call.h"

void openapi_get(struct api_call *call);
/* The document, put together from its table; the caller's reference. */
json_t *openapi_document(void);

#endif
