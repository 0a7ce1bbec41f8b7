{{- /* moed's command line. */ -}}
{{- define "moed.args" -}}
- --host=0.0.0.0
- --port={{ .Values.ports.grpc }}
- --metrics-port={{ .Values.ports.metrics }}
{{- if include "moed.hasModelVolume" . }}
- --model={{ include "moed.modelDirectory" . }}
{{- end }}
{{- with .Values.model.name }}
- --served-model-name={{ . }}
{{- end }}
{{- with .Values.model.maxModelLen }}
- --max-model-len={{ int64 . }}
{{- end }}
- --device={{ .Values.device }}
- --expert-budget={{ .Values.expert.budget }}
{{- with .Values.expert.policy }}
- --expert-policy={{ . }}
{{- end }}
{{- with .Values.expert.format }}
- --expert-format={{ . }}
{{- end }}
{{- with .Values.expert.coldPath }}
- --cold-path={{ . }}
{{- end }}
- --max-num-seqs={{ .Values.batching.maxNumSeqs }}
- --max-num-batched-tokens={{ .Values.batching.maxNumBatchedTokens }}
- --max-queued-requests={{ .Values.batching.maxQueuedRequests }}
- --max-queued-tokens={{ int64 .Values.batching.maxQueuedTokens }}
- --kv-cache-memory={{ .Values.kvCacheMemory }}
- --drain-seconds={{ .Values.drainSeconds }}
- --max-connection-age-seconds={{ .Values.maxConnectionAgeSeconds }}
{{- if .Values.tls.enabled }}
- --tls-cert=/tls/tls.crt
- --tls-key=/tls/tls.key
{{- if .Values.tls.clientAuth }}
- --tls-client-ca=/tls/ca.crt
{{- end }}
- --health-port={{ .Values.ports.health }}
{{- end }}
{{- if include "moed.gatewayEnabled" . }}
- --gateway-port={{ .Values.ports.gateway }}
{{- end }}
{{- if include "moed.apiKeySecret" . }}
- --api-key-file=/keys/keys
{{- end }}
{{- if .Values.admin.enabled }}
- --admin-port={{ .Values.ports.admin }}
{{- if .Values.admin.expose }}
- --admin-host=0.0.0.0
{{- end }}
{{- if .Values.admin.existingSecret }}
- --admin-key-file=/admin-keys/keys
{{- end }}
{{- end }}
{{- if .Values.monitoring.tls }}
- --metrics-tls-cert=/tls/tls.crt
- --metrics-tls-key=/tls/tls.key
{{- end }}
{{- if include "moed.metricsSecret" . }}
- --metrics-auth-file=/metrics-users/users
{{- end }}
{{- if .Values.hotSet.enabled }}
- --hot-set-file=/hot-set/hot-set
{{- end }}
- --log-level={{ .Values.log.level }}
- --log-format={{ .Values.log.format }}
{{- range .Values.extraArgs }}
- {{ . | quote }}
{{- end }}
{{- end }}

{{- define "moed.resources" -}}
{{- $memory := include "moed.memory" . -}}
requests: &resources
  cpu: {{ .Values.resources.cpu | quote }}
  memory: {{ $memory }}
  {{- with .Values.resources.hugepages1Gi }}
  hugepages-1Gi: {{ . }}
  {{- end }}
  {{- if eq .Values.device "cuda" }}
  nvidia.com/gpu: {{ .Values.gpus | quote }}
  {{- end }}
limits: *resources
{{- end }}

{{- define "moed.volumes" -}}
- name: tmp
  emptyDir: {}
- name: shm
  emptyDir: {medium: Memory, sizeLimit: {{ .Values.shmSize }}}
{{- with .Values.model.source }}
{{- if .pvc }}
- name: model
  persistentVolumeClaim: {claimName: {{ .pvc }}}
{{- else if .hostPath }}
- name: model
  hostPath: {path: {{ .hostPath }}, type: Directory}
{{- else if .image }}
- name: model
  image: {reference: {{ .image }}, pullPolicy: IfNotPresent}
{{- else if .claim.enabled }}
- name: model
  persistentVolumeClaim: {claimName: {{ include "moed.fullname" $ }}-model}
{{- end }}
{{- end }}
{{- if .Values.tls.enabled }}
- name: tls
  secret: {secretName: {{ include "moed.tlsSecret" . }}}
{{- end }}
{{- with include "moed.apiKeySecret" . }}
- name: keys
  secret: {secretName: {{ . }}}
{{- end }}
{{- if and .Values.admin.enabled .Values.admin.existingSecret }}
- name: admin-keys
  secret: {secretName: {{ .Values.admin.existingSecret }}}
{{- end }}
{{- with include "moed.metricsSecret" . }}
- name: metrics-users
  secret: {secretName: {{ . }}, items: [{key: users, path: users}]}
{{- end }}
{{- if and .Values.hotSet.enabled (not .Values.hotSet.persistent) }}
- name: hot-set
  emptyDir: {sizeLimit: {{ .Values.hotSet.size }}}
{{- end }}
{{- if .Values.resources.hugepages1Gi }}
- name: hugepages
  emptyDir: {medium: HugePages-1Gi}
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "moed.volumeMounts" -}}
- {name: tmp, mountPath: /tmp}
- {name: shm, mountPath: /dev/shm}
{{- if include "moed.hasModelVolume" . }}
- {name: model, mountPath: /model, readOnly: true}
{{- end }}
{{- if .Values.tls.enabled }}
- {name: tls, mountPath: /tls, readOnly: true}
{{- end }}
{{- if include "moed.apiKeySecret" . }}
- {name: keys, mountPath: /keys, readOnly: true}
{{- end }}
{{- if and .Values.admin.enabled .Values.admin.existingSecret }}
- {name: admin-keys, mountPath: /admin-keys, readOnly: true}
{{- end }}
{{- if include "moed.metricsSecret" . }}
- {name: metrics-users, mountPath: /metrics-users, readOnly: true}
{{- end }}
{{- if .Values.hotSet.enabled }}
- {name: hot-set, mountPath: /hot-set}
{{- end }}
{{- if .Values.resources.hugepages1Gi }}
- {name: hugepages, mountPath: /hugepages}
{{- end }}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "moed.downloadContainer" -}}
- name: download
  image: {{ .image }}
  {{- with .command }}
  command: {{ toJson . }}
  {{- end }}
  {{- with .args }}
  args: {{ toJson . }}
  {{- end }}
  {{- with .env }}
  env: {{ toJson . }}
  {{- end }}
  {{- with .envFrom }}
  envFrom: {{ toJson . }}
  {{- end }}
  securityContext:
    allowPrivilegeEscalation: false
    capabilities: {drop: [ALL]}
  volumeMounts:
    - {name: model, mountPath: /model}
    - {name: tmp, mountPath: /tmp}
{{- end }}

{{- define "moed.podTemplate" -}}
metadata:
  labels:
    {{- include "moed.selectorLabels" . | nindent 4 }}
    {{- with .Values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with .Values.podAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  serviceAccountName: {{ include "moed.serviceAccountName" . }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ include "moed.gracePeriodSeconds" . }}
  securityContext:
    {{- toYaml .Values.podSecurityContext | nindent 4 }}
  {{- with .Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  {{- with .Values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with .Values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  topologySpreadConstraints:
    {{- with .Values.topologySpreadConstraints }}
    {{- toYaml . | nindent 4 }}
    {{- else }}
    - maxSkew: 1
      topologyKey: kubernetes.io/hostname
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "moed.selectorLabels" . | nindent 10 }}
    {{- end }}
  {{- if .Values.model.download.enabled }}
  initContainers:
    {{- include "moed.downloadContainer" .Values.model.download | nindent 4 }}
  {{- end }}
  containers:
    - name: moed
      image: {{ include "moed.image" . }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      args:
        {{- include "moed.args" . | nindent 8 }}
      {{- with .Values.extraEnv }}
      env:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      ports:
        - {name: grpc, containerPort: {{ .Values.ports.grpc }}}
        - {name: metrics, containerPort: {{ .Values.ports.metrics }}}
        {{- if .Values.tls.enabled }}
        - {name: health, containerPort: {{ .Values.ports.health }}}
        {{- end }}
        {{- if include "moed.gatewayEnabled" . }}
        - {name: gateway, containerPort: {{ .Values.ports.gateway }}}
        {{- end }}
        {{- if .Values.admin.expose }}
        - {name: admin, containerPort: {{ .Values.ports.admin }}}
        {{- end }}
      securityContext:
        {{- toYaml .Values.securityContext | nindent 8 }}
        readOnlyRootFilesystem: {{ .Values.readOnlyRootFilesystem }}
      # Ready: the model is loaded, the engine moves, no drain has begun.
      startupProbe:
        grpc: {port: {{ include "moed.probePort" . }}, service: moed.v1.Inference}
        periodSeconds: 5
        failureThreshold: {{ div (add (include "moed.startupSeconds" .) 4) 5 }}
      readinessProbe:
        grpc: {port: {{ include "moed.probePort" . }}, service: moed.v1.Inference}
        periodSeconds: 5
        failureThreshold: 2
        timeoutSeconds: 3
      # Alive: whatever the load, as long as the engine makes progress.
      livenessProbe:
        grpc: {port: {{ include "moed.probePort" . }}, service: ""}
        periodSeconds: 15
        failureThreshold: 8
        timeoutSeconds: 10
      {{- if .Values.preStopSeconds }}
      lifecycle:
        preStop:
          sleep: {seconds: {{ .Values.preStopSeconds }}}
      {{- end }}
      resources:
        {{- include "moed.resources" . | nindent 8 }}
      volumeMounts:
        {{- include "moed.volumeMounts" . | nindent 8 }}
  volumes:
    {{- include "moed.volumes" . | nindent 4 }}
{{- end }}
