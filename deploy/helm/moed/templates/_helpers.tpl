{{- define "moed.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "moed.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" }}
{{- else if contains (include "moed.name" .) .Release.Name }}
{{- .Release.Name | trunc 52 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "moed.name" .) | trunc 52 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "moed.selectorLabels" -}}
app.kubernetes.io/name: {{ include "moed.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: server
{{- end }}

{{- define "moed.labels" -}}
{{ include "moed.commonLabels" . }}
app.kubernetes.io/component: server
{{- end }}

{{- define "moed.commonLabels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
app.kubernetes.io/name: {{ include "moed.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "moed.routerLabels" -}}
app.kubernetes.io/name: {{ include "moed.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: router
{{- end }}

{{- define "moed.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "moed.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "moed.image" -}}
{{- $suffix := ternary "-cuda" "" (and (eq .Values.device "cuda") (not .Values.image.tag)) }}
{{- printf "%s:%s%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) $suffix }}
{{- end }}

{{- define "moed.hasModelVolume" -}}
{{- with .Values.model.source }}
{{- if or .pvc .hostPath .image .claim.enabled }}true{{ end }}
{{- end }}
{{- end }}

{{- define "moed.modelDirectory" -}}
{{- if .Values.model.path }}{{ printf "/model/%s" .Values.model.path }}{{ else }}/model{{ end }}
{{- end }}

{{- /* Experts live in host memory once, whatever part of them is on the GPU. */ -}}
{{- define "moed.memory" -}}
{{- with .Values.resources.memory }}{{ . }}{{ else -}}
{{- printf "%dGi" (int (ceil (addf (mulf 1.2 .Values.model.sizeGiB) .Values.resources.memoryOverheadGiB))) }}
{{- end }}
{{- end }}

{{- define "moed.startupSeconds" -}}
{{- if .Values.startupMinutes }}{{ mul 60 .Values.startupMinutes }}
{{- else }}{{ int (addf 120 (mulf 11 .Values.model.sizeGiB)) }}
{{- end }}
{{- end }}

{{- define "moed.gracePeriodSeconds" -}}
{{ add .Values.preStopSeconds .Values.drainSeconds 10 }}
{{- end }}

{{- define "moed.gatewayEnabled" -}}
{{- if or .Values.gateway.enabled .Values.router.enabled }}true{{ end }}
{{- end }}

{{- define "moed.tlsSecret" -}}
{{- default (printf "%s-tls" (include "moed.fullname" .)) .Values.tls.secretName }}
{{- end }}

{{- define "moed.apiKeySecret" -}}
{{- if .Values.apiKeys.existingSecret }}{{ .Values.apiKeys.existingSecret }}
{{- else if .Values.apiKeys.keys }}{{ include "moed.fullname" . }}-keys
{{- end }}
{{- end }}

{{- define "moed.metricsSecret" -}}
{{- with .Values.monitoring.auth }}
{{- if .existingSecret }}{{ .existingSecret }}
{{- else if .username }}{{ include "moed.fullname" $ }}-metrics
{{- end }}
{{- end }}
{{- end }}

{{- define "moed.probePort" -}}
{{ ternary .Values.ports.health .Values.ports.grpc .Values.tls.enabled }}
{{- end }}

{{- /* Values that contradict each other. */ -}}
{{- define "moed.check" -}}
{{- if and .Values.hotSet.enabled .Values.hotSet.persistent (ne .Values.kind "StatefulSet") }}
{{- fail "hotSet.persistent needs kind: StatefulSet, for each replica keeps a volume of its own" }}
{{- end }}
{{- if and (include "moed.apiKeySecret" .) (not .Values.tls.enabled) }}
{{- fail "apiKeys need tls.enabled: a key sent in plain text is no secret" }}
{{- end }}
{{- if and .Values.tls.certManager.enabled (not .Values.tls.certManager.issuerRef.name) }}
{{- fail "tls.certManager needs issuerRef.name" }}
{{- end }}
{{- if and .Values.tls.enabled (not .Values.tls.secretName) (not .Values.tls.certManager.enabled) }}
{{- fail "tls.enabled needs tls.secretName or tls.certManager" }}
{{- end }}
{{- if and .Values.admin.expose (not (and .Values.admin.enabled .Values.admin.existingSecret .Values.tls.enabled)) }}
{{- fail "admin.expose needs admin.enabled, admin.existingSecret and tls.enabled" }}
{{- end }}
{{- if and .Values.monitoring.tls (not .Values.tls.enabled) }}
{{- fail "monitoring.tls needs tls.enabled, whose certificate it uses" }}
{{- end }}
{{- if and (include "moed.metricsSecret" .) (not .Values.monitoring.tls) }}
{{- fail "monitoring.auth needs monitoring.tls: a password sent in plain text is no secret" }}
{{- end }}
{{- if and .Values.router.enabled (not .Values.router.image) }}
{{- fail "router.enabled needs router.image, an image with smg 1.13 or newer" }}
{{- end }}
{{- if and .Values.model.download.enabled (not .Values.model.download.image) }}
{{- fail "model.download needs an image" }}
{{- end }}
{{- if and .Values.inferencePool.enabled (not .Values.inferencePool.endpointPicker.name) }}
{{- fail "inferencePool needs endpointPicker.name, the Service of the endpoint picker" }}
{{- end }}
{{- end }}
